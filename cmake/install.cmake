# cmake --install: the program, its service and documents; the library with its public header, and the package that
# find_package(gemma4) finds. The component `program` is what a package has (package.cmake); the library is for those who
# build.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(PACKAGE_FOLDER ${CMAKE_INSTALL_LIBDIR}/cmake/gemma4)
set_target_properties(gemma4_lib PROPERTIES EXPORT_NAME gemma4)
install(TARGETS gemma4 RUNTIME COMPONENT program)
install(FILES packaging/gemma4.service DESTINATION lib/systemd/system COMPONENT program)
# What the documents link to lies where they look for it.
install(FILES README.md LICENSE CHANGELOG.md CONTRIBUTING.md Dockerfile Dockerfile.cuda packaging/gemma4.default
        DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program)
install(FILES models/README.md DESTINATION ${CMAKE_INSTALL_DOCDIR}/models COMPONENT program)
install(DIRECTORY docs examples DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program)
install(DIRECTORY packaging DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program PATTERN debian EXCLUDE)
install(TARGETS gemma4_lib EXPORT gemma4Targets ARCHIVE COMPONENT library)
install(FILES src/program/program.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/gemma4 COMPONENT library)
install(EXPORT gemma4Targets NAMESPACE gemma4:: DESTINATION ${PACKAGE_FOLDER} COMPONENT library)
configure_package_config_file(cmake/gemma4Config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/gemma4Config.cmake
                              INSTALL_DESTINATION ${PACKAGE_FOLDER})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/gemma4ConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/gemma4Config.cmake ${CMAKE_CURRENT_BINARY_DIR}/gemma4ConfigVersion.cmake
        DESTINATION ${PACKAGE_FOLDER} COMPONENT library)
