# add_suites(target): one CTest test for each suite of a GoogleTest program. A process for each suite, not for each test:
# what a suite sets up (a model, a server) is set up once. The suites are asked of the built program, so none is missed.
# Run as a script (-D PROGRAM -D FOLDER -D OUTPUT -D EMULATOR), this file writes the list.
if(CMAKE_SCRIPT_MODE_FILE)
  cmake_minimum_required(VERSION 3.25)
  execute_process(COMMAND ${EMULATOR} ${PROGRAM} --gtest_list_tests WORKING_DIRECTORY ${FOLDER} OUTPUT_VARIABLE listed
                  COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "(^|\n)[^ \n]+\\.(\n|  #)" suites "\n${listed}")
  get_filename_component(program ${PROGRAM} NAME)
  # Skipped is said only where every test of a suite was: a failure beside one must show.
  set(skipped "PASSED  \\] 0 tests\\.\n\\[  SKIPPED \\] [0-9]+ tests?, listed below:\n(\\[  SKIPPED \\] [^\n]*\n)+$")
  # Those that take longest, under the sanitizers, begin first.
  set(long ServerTest BenchCommand EngineOverRanks Engine Golden NoBleed ProgramExportTest Backends/TensorParallelOn Targets/Fuzz)
  set(emulator "")
  if(EMULATOR)
    set(emulator "[==[${EMULATOR}]==]")
  endif()
  set(text "")
  foreach(suite IN LISTS suites)
    string(REGEX REPLACE "[\n #]" "" suite "${suite}")
    string(REGEX REPLACE "\\.$" "" name "${suite}")
    set(cost 0)
    if(name IN_LIST long)
      set(cost 1)
    endif()
    string(APPEND text "add_test([==[${program}/${name}]==] ${emulator} [==[${PROGRAM}]==] [==[--gtest_filter=${suite}*]==])\n"
           "set_tests_properties([==[${program}/${name}]==] PROPERTIES WORKING_DIRECTORY [==[${FOLDER}]==] TIMEOUT 900 "
           "COST ${cost} SKIP_REGULAR_EXPRESSION [==[${skipped}]==])\n")
  endforeach()
  if(NOT text)
    message(FATAL_ERROR "${PROGRAM} lists no test")
  endif()
  file(WRITE ${OUTPUT} "${text}")
  return()
endif()

function(add_suites target)
  set(list ${CMAKE_CURRENT_BINARY_DIR}/${target}_suites.cmake)
  add_custom_command(TARGET ${target} POST_BUILD BYPRODUCTS ${list}
                     COMMAND ${CMAKE_COMMAND} -D PROGRAM=$<TARGET_FILE:${target}> -D FOLDER=${CMAKE_CURRENT_SOURCE_DIR}
                             -D EMULATOR=${CMAKE_CROSSCOMPILING_EMULATOR} -D OUTPUT=${list} -P ${CMAKE_CURRENT_FUNCTION_LIST_FILE})
  set(include ${CMAKE_CURRENT_BINARY_DIR}/${target}_include.cmake)
  file(WRITE ${include} "if(EXISTS [==[${list}]==])\n  include([==[${list}]==])\nelse()\n"
       "  add_test(${target}_IS_NOT_BUILT ${target}_IS_NOT_BUILT)\nendif()\n")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${include})
endfunction()
