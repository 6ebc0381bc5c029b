# cmake --install: the program, the library with its public header, and the package that find_package(gemma4) finds.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(PACKAGE_FOLDER ${CMAKE_INSTALL_LIBDIR}/cmake/gemma4)
set_target_properties(gemma4_lib PROPERTIES EXPORT_NAME gemma4)
install(TARGETS gemma4 RUNTIME)
install(TARGETS gemma4_lib EXPORT gemma4Targets ARCHIVE)
install(FILES src/program/program.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/gemma4)
install(EXPORT gemma4Targets NAMESPACE gemma4:: DESTINATION ${PACKAGE_FOLDER})
configure_package_config_file(cmake/gemma4Config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/gemma4Config.cmake
                              INSTALL_DESTINATION ${PACKAGE_FOLDER})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/gemma4ConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/gemma4Config.cmake ${CMAKE_CURRENT_BINARY_DIR}/gemma4ConfigVersion.cmake
        DESTINATION ${PACKAGE_FOLDER})
