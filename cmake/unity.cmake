# Unity builds (PRECOMPILE): several sources of a module are compiled as one, so that the headers which they share are
# read once. For builds that begin from nothing, as in CI: it takes a third off. The inner loop does without.

# unite(list name pattern count): the sources in `list` that match `pattern` become `count` files that include them one
# after the other. UNITED_<name> names the files. A source with options of its own is left alone. unite.py deals them out,
# so that no file defines a name twice.
function(unite list name pattern count)
  set(mine ${${list}})
  list(FILTER mine INCLUDE REGEX "${pattern}")
  list(FILTER mine EXCLUDE REGEX
       "/(ref|resize|gif|heif|json_plain|json_ordered|quant/pattern|quantize|hqq|blocks_pack|synth|command_line|command_table|line_editor)\\.cc$")
  if(NOT mine)
    return()
  endif()
  set(rest ${${list}})
  list(REMOVE_ITEM rest ${mine})
  math(EXPR last "${count} - 1")
  foreach(group RANGE ${last})
    set(text_${group} "")
  endforeach()
  execute_process(COMMAND python3 ${CMAKE_CURRENT_SOURCE_DIR}/cmake/unite.py ${count} ${mine} OUTPUT_VARIABLE groups
                  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  string(REPLACE "\n" ";" groups "${groups}")
  foreach(source group IN ZIP_LISTS mine groups)
    if(group EQUAL -1)
      list(APPEND rest ${source})
    else()
      string(APPEND text_${group} "#include \"${source}\"\n")
    endif()
  endforeach()
  set(united "")
  foreach(group RANGE ${last})
    set(file ${CMAKE_CURRENT_BINARY_DIR}/united/${name}_${group}.cc)
    file(CONFIGURE OUTPUT ${file} CONTENT "${text_${group}}" @ONLY)
    list(APPEND united ${file})
  endforeach()
  set(${list} ${rest} ${united} PARENT_SCOPE)
  set(UNITED_${name} ${united} PARENT_SCOPE)
endfunction()

# Each module's sources, in as many files as keep two cores busy.
macro(unite_sources)
  set(DEVICE_SOURCES ${SOURCES})  # backend/cpu is read once for each SIMD target: each file must be a source of its own
  list(FILTER DEVICE_SOURCES INCLUDE REGEX "/src/backend/(cpu|cuda)/")
  list(REMOVE_ITEM SOURCES ${DEVICE_SOURCES})
  foreach(module base:2 backend:2 checkpoint:5 distributed:1 engine:2 image:1 model:2 program:1 server:4 text:4 cli:5)
    string(REGEX MATCH "([a-z]+):([0-9])" module ${module})
    unite(SOURCES ${CMAKE_MATCH_1} "/src/${CMAKE_MATCH_1}/.*\\.cc$" ${CMAKE_MATCH_2})
  endforeach()
  list(APPEND SOURCES ${DEVICE_SOURCES})
endmacro()

macro(unite_tests)
  foreach(module backend:2 base:1 checkpoint:2 cli:1 distributed:1 engine:1 image:1 model:1 program:1 quant:1 server:1
          text:2)
    string(REGEX MATCH "([a-z]+):([0-9])" module ${module})
    unite(TESTS ${CMAKE_MATCH_1}_tests "/src/${CMAKE_MATCH_1}/.*_test\\.cc$" ${CMAKE_MATCH_2})
  endforeach()
  unite(TESTS server_whole_tests "/tests/server_" 1)
  unite(TESTS program_whole_tests "/tests/(bench_cli|cli|processes|serve_process)_" 1)
  unite(TESTS golden_whole_tests "/tests/(golden|export_golden|parity)_" 1)
endmacro()

macro(unite_cuda_tests)
  unite(CUDA_TESTS cuda_tests "/(attention|select_kernel|prepacked_weight|sample|kernel|recorder)_test\\.cc$" 1)
endmacro()
