# cpack: a .deb for the system that it is built on, or, with PORTABLE, a .tar.gz with the libraries inside. `make package`
# builds both (tools/package.sh); tools/try_package.sh tries them.
if(PORTABLE)
  # The C library, the compiler's and the loader are the system's: libgcc_s has one interface for ever, and the C library
  # must be the one that the system's other parts use. So is libstdc++, for the carried libraries that need it: the
  # program has its own inside, since a newer compiler's needs a newer one than systems have.
  set(SYSTEM_LIBRARIES "^(ld-linux.*|lib(c|m|dl|rt|pthread|gcc_s|stdc[+][+]))[.]so")
  set(CARRIED_FOLDER lib/gemma4)
  # DT_RPATH, not DT_RUNPATH: the libraries that a carried library needs are carried, too.
  set_target_properties(gemma4 PROPERTIES INSTALL_RPATH "$ORIGIN/../${CARRIED_FOLDER}")
  target_sources(gemma4 PRIVATE packaging/portable_arc4random.cc)
  target_link_options(gemma4 PRIVATE -static-libstdc++ LINKER:--disable-new-dtags)
  install(CODE "
    file(GET_RUNTIME_DEPENDENCIES EXECUTABLES \"$<TARGET_FILE:gemma4>\" RESOLVED_DEPENDENCIES_VAR carried
         PRE_EXCLUDE_REGEXES \"${SYSTEM_LIBRARIES}\")
    foreach(library IN LISTS carried)
      file(INSTALL \"\${library}\" DESTINATION \"\${CMAKE_INSTALL_PREFIX}/${CARRIED_FOLDER}\" FOLLOW_SYMLINK_CHAIN)
    endforeach()
    # Their licences: Debian has each package's in one file.
    foreach(library IN LISTS carried)
      file(REAL_PATH \"\${library}\" real)
      # Where /lib is a link to /usr/lib, dpkg knows some files by the one path and some by the other.
      string(REGEX REPLACE \"^/usr\" \"\" other \"\${real}\")
      execute_process(COMMAND dpkg-query -S \"\${real}\" \"\${other}\" OUTPUT_VARIABLE owner ERROR_QUIET
                      OUTPUT_STRIP_TRAILING_WHITESPACE)
      string(REGEX REPLACE \":.*\" \"\" owner \"\${owner}\")
      if(NOT EXISTS \"/usr/share/doc/\${owner}/copyright\")
        message(FATAL_ERROR \"no licence was found for \${library}\")
      endif()
      file(INSTALL \"/usr/share/doc/\${owner}/copyright\" RENAME \"\${owner}\"
           DESTINATION \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DOCDIR}/licences\")
    endforeach()
  " COMPONENT program)
endif()

set(CPACK_PACKAGE_NAME gemma4)
set(CPACK_PACKAGE_VENDOR "the authors of gemma4")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "run and serve Gemma 4 31B on one machine")
set(CPACK_PACKAGE_DESCRIPTION "Reads text and pictures on a CPU or a CUDA GPU: quantises the Hugging Face
checkpoint once, answers prompts, and serves OpenAI's, Anthropic's and Ollama's
APIs over HTTP. The checkpoint is not in this package.")
set(CPACK_INSTALL_CMAKE_PROJECTS "${CMAKE_BINARY_DIR};gemma4;program;/")
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_DIRECTORY ${CMAKE_BINARY_DIR}/packages)
set(CPACK_PACKAGE_FILE_NAME gemma4-${PROJECT_VERSION}-linux-${CMAKE_SYSTEM_PROCESSOR})
if(PORTABLE)
  set(CPACK_GENERATOR TGZ)
else()
  set(CPACK_GENERATOR DEB)
  set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
  set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
  set(CPACK_DEBIAN_PACKAGE_MAINTAINER "The authors of gemma4 <${PACKAGE_MAIL}>")
  set(CPACK_DEBIAN_PACKAGE_SECTION science)
  set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
  set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "libcurl4t64 | libcurl4, ca-certificates")  # opened when image URLs are allowed
  set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
  set(DEBIAN ${CMAKE_CURRENT_SOURCE_DIR}/packaging/debian)
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/conffiles "/etc/default/gemma4\n")
  set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${CMAKE_CURRENT_BINARY_DIR}/conffiles ${DEBIAN}/postinst ${DEBIAN}/prerm
      ${DEBIAN}/postrm)
  # What Debian wants besides: /etc/default, compressed documents.
  set(CPACK_PRE_BUILD_SCRIPTS ${CMAKE_CURRENT_SOURCE_DIR}/cmake/debian_files.cmake)
  set(CPACK_GEMMA4_SOURCE ${CMAKE_CURRENT_SOURCE_DIR})
endif()
include(CPack)
