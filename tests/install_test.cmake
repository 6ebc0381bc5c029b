# Installs this build, builds examples/ against the installed package, and runs the example on a program exported by
# the installed gemma4: it must continue a prompt with the reference's ids.
#   cmake -D BUILD=build/dev -D SOURCE=. -D FOLDER=build/dev/install_test -P tests/install_test.cmake
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE err
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT code EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nended with ${code}\n${out}\n${err}")
  endif()
  set(out "${out}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${FOLDER})
set(PREFIX ${FOLDER}/prefix)
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${PREFIX})

# What uninstalls (docs/INSTALL.md) reads the list of files: it must name each.
file(STRINGS ${BUILD}/install_manifest.txt listed)
file(GLOB_RECURSE installed ${PREFIX}/*)
list(REMOVE_ITEM installed ${listed})
if(installed)
  list(JOIN installed "\n  " installed)
  message(FATAL_ERROR "installed, but not in install_manifest.txt:\n  ${installed}")
endif()

# A link of an installed document leads to an installed file.
file(GLOB_RECURSE documents ${PREFIX}/share/doc/*.md)
foreach(document IN LISTS documents)
  file(READ ${document} text)
  string(REPLACE "](" "@(" text "${text}")  # brackets in an element of a list keep CMake from seeing its end
  string(REGEX MATCHALL "@\\([^)# ]+" links "${text}")
  get_filename_component(folder ${document} DIRECTORY)
  foreach(link IN LISTS links)
    string(SUBSTRING "${link}" 2 -1 link)
    if(NOT link MATCHES "^[a-z]+:" AND NOT EXISTS "${folder}/${link}")
      message(FATAL_ERROR "${document} links to ${link}, which is not installed")
    endif()
  endforeach()
endforeach()

run(${CMAKE_COMMAND} -S ${SOURCE}/examples -B ${FOLDER}/examples -DCMAKE_PREFIX_PATH=${PREFIX}
    -DCMAKE_BUILD_TYPE=Release)
run(${CMAKE_COMMAND} --build ${FOLDER}/examples)

file(READ ${SOURCE}/tests/golden/demo_eval/demo_text_eval.json GOLDEN)
function(ids_of key into)
  string(JSON count LENGTH "${GOLDEN}" 1 ${key})
  math(EXPR last "${count} - 1")
  set(ids "")
  foreach(i RANGE ${last})
    string(JSON id GET "${GOLDEN}" 1 ${key} ${i})
    list(APPEND ids ${id})
  endforeach()
  set(${into} "${ids}" PARENT_SCOPE)
endfunction()
ids_of(prompt_ids prompt)
ids_of(reference_ids want)
list(LENGTH want count)

foreach(vision "" --no-vision)
  run(${PREFIX}/bin/gemma4 export --format program --model-dir ${SOURCE}/models/demo --output-dir ${FOLDER}/program --force
      ${vision})
  run(${FOLDER}/examples/continue_ids ${FOLDER}/program ${count} ${prompt})
  string(REPLACE " " ";" got "${out}")
  if(NOT got STREQUAL want)
    message(FATAL_ERROR "continue_ids printed ${got}, the reference is ${want}")
  endif()
endforeach()
file(REMOVE_RECURSE ${FOLDER})
