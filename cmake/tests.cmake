# Tests, fuzz targets and benchmarks. A test lies beside its source (x_test.cc), as do fuzz targets (x_fuzz.cc) and
# benchmarks (x_bench.cc). unit_tests has everything that runs without a GPU, cuda_tests what is compiled with CUDA.
find_package(GTest REQUIRED)
include(cmake/add_suites.cmake)

file(GLOB_RECURSE TESTS CONFIGURE_DEPENDS src/*_test.cc tests/*_test.cc)
list(FILTER TESTS EXCLUDE REGEX "backend/cuda/")
file(GLOB_RECURSE FUZZERS CONFIGURE_DEPENDS src/*_fuzz.cc)
if(TESTS_ONLY)
  list(FILTER TESTS INCLUDE REGEX "${TESTS_ONLY}")
  set(FUZZERS)
endif()
if(PRECOMPILE)
  unite_tests()
endif()
add_executable(unit_tests ${TESTS})
target_link_libraries(unit_tests PRIVATE gemma4_lib GTest::gtest_main GTest::gmock)
precompile_headers(unit_tests <gmock/gmock.h> <gtest/gtest.h>)
set_target_properties(unit_tests PROPERTIES ONLY_CALLS ON)
if(SANITIZE)
  target_compile_options(unit_tests PRIVATE -O0)  # a quarter of their compile time; they wait for the library
  # Where an inline function stands in both, the library's is linked, with its checks: it comes first.
  target_link_options(unit_tests PRIVATE -Wl,--whole-archive $<TARGET_FILE:gemma4_lib> -Wl,--no-whole-archive)
endif()
# Relative paths, so that a compiler cache serves every checkout: tests run in the source folder.
file(RELATIVE_PATH BINARY_PATH ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_BINARY_DIR}/gemma4)
if(CMAKE_CROSSCOMPILING)  # tests start the program, too
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/emulated_gemma4 @ONLY
       CONTENT "#!/bin/sh\nexec '@CMAKE_CROSSCOMPILING_EMULATOR@' '@CMAKE_CURRENT_BINARY_DIR@/gemma4' \"$@\"\n")
  file(CHMOD ${CMAKE_CURRENT_BINARY_DIR}/emulated_gemma4 PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  string(REPLACE "/gemma4" "/emulated_gemma4" BINARY_PATH "${BINARY_PATH}")
endif()
target_compile_definitions(unit_tests PRIVATE SOURCE_DIR="." GEMMA4_BINARY="./${BINARY_PATH}"
                           TESTED_BACKEND="cpu")
add_dependencies(unit_tests gemma4)
add_suites(unit_tests)

if(FUZZERS)  # unit_tests runs each target briefly, `fuzzer` for as long as one likes; both from the source folder
  add_library(fuzz_targets OBJECT ${FUZZERS})
  target_link_libraries(fuzz_targets PRIVATE gemma4_lib)
  target_compile_definitions(fuzz_targets PRIVATE SOURCE_DIR=".")
  target_compile_options(fuzz_targets PRIVATE ${CHECKS_ARE_CALLS})
  precompile_headers(fuzz_targets)
  target_sources(unit_tests PRIVATE $<TARGET_OBJECTS:fuzz_targets>)
  add_executable(fuzzer fuzz/main.cc fuzz/meter.cc $<TARGET_OBJECTS:fuzz_targets>)
  target_link_libraries(fuzzer PRIVATE gemma4_lib)
endif()

add_executable(draw_answers EXCLUDE_FROM_ALL tests/draw_answers.cc)  # run by tools/check_schemas.py
target_link_libraries(draw_answers PRIVATE gemma4_lib)

if(HAVE_CUDA)
  file(GLOB_RECURSE CUDA_TESTS CONFIGURE_DEPENDS src/backend/cuda/*_test.cc)
  if(PRECOMPILE)
    unite_cuda_tests()
  endif()
  list(APPEND CUDA_TESTS tests/whole_model_test.cc)  # in unit_tests on cpu, here on cuda
  add_executable(cuda_tests ${CUDA_TESTS})  # apart, small enough to carry to a machine with a GPU
  target_link_libraries(cuda_tests PRIVATE gemma4_lib CUDA::cudart_static GTest::gtest_main)  # cudart: its headers
  target_compile_definitions(cuda_tests PRIVATE SOURCE_DIR="." TESTED_BACKEND="cuda")
  set_target_properties(cuda_tests PROPERTIES ONLY_CALLS ON)
  add_suites(cuda_tests)
  add_executable(cuda_linear_bench src/backend/cuda/gemm/linear_bench.cu)  # checks every layout, then times them
  target_link_libraries(cuda_linear_bench PRIVATE gemma4_lib CUDA::cudart_static)
endif()

if(SANITIZE)  # an installed library brings no sanitizer, and a benchmark under one says nothing
  return()
endif()
if(CMAKE_CROSSCOMPILING)  # the same for an emulator, for which suite Golden would take too long (preset `arm`)
  foreach(backend ref cpu)
    add_test(NAME golden_${backend} COMMAND gemma4 eval tests/golden/tiny --golden tests/golden/tiny/golden
             --backend ${backend} WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
  endforeach()
  add_test(NAME demo COMMAND gemma4 run models/demo --backend cpu --image tests/golden/demo_eval/images/002.png
           --prompt "What is at the left?" --temperature 0 WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
  set_tests_properties(demo PROPERTIES PASS_REGULAR_EXPRESSION "A pink circle\\.")
  return()
endif()
add_test(NAME tidy COMMAND python3 ${CMAKE_CURRENT_SOURCE_DIR}/tools/tidy.py)
# What a portable package is checked with must accept and refuse: the same program under a high and under a low limit.
set(CHECK_SYMBOLS ${CMAKE_CURRENT_SOURCE_DIR}/tools/check_symbols.sh $<TARGET_FILE:gemma4>)
add_test(NAME symbols_accepted COMMAND env GLIBC=99 GLIBCXX=99 ${CHECK_SYMBOLS})
add_test(NAME symbols_refused COMMAND env GLIBC=2.17 GLIBCXX=99 ${CHECK_SYMBOLS})
set_tests_properties(symbols_refused PROPERTIES PASS_REGULAR_EXPRESSION "needs GLIBC_.*at most GLIBC_2.17 is allowed")
# The counts that are kept are those of the preset `test`, with its options and every SIMD target.
if(NOT NATIVE_ONLY)
  string(REGEX MATCH "^[0-9]+" major "${CMAKE_CXX_COMPILER_VERSION}")
  add_test(NAME instructions COMMAND python3 tests/instructions_test.py $<TARGET_FILE:gemma4>
           "${CMAKE_CXX_COMPILER_ID} ${major}" ${CMAKE_CURRENT_BINARY_DIR}/instructions_test
           WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
  set_tests_properties(instructions PROPERTIES SKIP_RETURN_CODE 77)
endif()
add_test(NAME setup COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/tests/setup_test.sh)
add_test(NAME install COMMAND ${CMAKE_COMMAND} -D BUILD=${CMAKE_CURRENT_BINARY_DIR}
         -D SOURCE=${CMAKE_CURRENT_SOURCE_DIR} -D FOLDER=${CMAKE_CURRENT_BINARY_DIR}/install_test
         -P ${CMAKE_CURRENT_SOURCE_DIR}/tests/install_test.cmake)
find_package(benchmark REQUIRED)
file(GLOB_RECURSE BENCHES CONFIGURE_DEPENDS src/*_bench.cc)
list(FILTER BENCHES EXCLUDE REGEX "backend/cuda/")
add_executable(benchmarks ${BENCHES})
target_link_libraries(benchmarks PRIVATE gemma4_lib benchmark::benchmark benchmark::benchmark_main)
if(HAVE_CUDA)
  file(GLOB_RECURSE CUDA_BENCHES CONFIGURE_DEPENDS src/backend/cuda/*_bench.cc)
  add_executable(cuda_benchmarks ${CUDA_BENCHES})
  target_link_libraries(cuda_benchmarks PRIVATE gemma4_lib benchmark::benchmark benchmark::benchmark_main)
  # Of use where a GPU is: preset cuda builds them, `make test` does not.
  set_target_properties(cuda_linear_bench cuda_benchmarks PROPERTIES EXCLUDE_FROM_ALL ${PRECOMPILE})
endif()
