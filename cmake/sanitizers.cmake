# Sanitizers (SANITIZE, e.g. "address,undefined") and what they cost. Checks that another sanitizer makes anyway are left
# out where they would take most of the compiler's time. Sets
#   CALLER_OPTIONS   for what only calls the library: tests, fuzz targets, commands
#   CHECKS_ARE_CALLS AddressSanitizer's checks as calls instead of inline code
#   JSON_OPTIONS     for sources that mostly handle JSON values
#   LOOP_OPTIONS     for loops over numbers, which tests wait for
# and, in apply_sanitizer_options(), the options of single sources.
set(CALLER_OPTIONS -O1)  # the optimiser would spend minutes on code that runs once
set(LOOP_OPTIONS -O3)
set(CHECKS_ARE_CALLS "")
set(JSON_OPTIONS "")

if(SANITIZE)
  set(CALLER_OPTIONS "")
  set(LOOP_OPTIONS "")
  # UBSan's checks of null pointers and of object sizes take a third of the compiler's time, and AddressSanitizer sees
  # what they would see. Those of virtual tables and of alignment take a tenth each: one class has virtual functions,
  # and sources that read numbers out of bytes get the alignment check back below.
  target_compile_options(flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${SANITIZE}
                         -fno-sanitize=null,object-size,vptr,alignment -fno-sanitize-recover=all -fno-omit-frame-pointer>)
  target_link_options(flags INTERFACE -fsanitize=${SANITIZE})
endif()

# GCC defines these; Clang does since version 22.
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 22)
  foreach(sanitizer IN ITEMS address thread)
    string(TOUPPER ${sanitizer} macro)
    if(SANITIZE MATCHES ${sanitizer})
      target_compile_definitions(flags INTERFACE __SANITIZE_${macro}__=1)
    endif()
  endforeach()
endif()

if(SANITIZE MATCHES address)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # The compiler is done in three quarters of the time. Not for loops over numbers, nor for what reads tokenizers:
    # tests wait for those.
    set(CHECKS_ARE_CALLS --param=asan-instrumentation-with-call-threshold=0)
  endif()
  set(CALLER_OPTIONS -fno-sanitize=undefined -fno-sanitize-address-use-after-scope ${CHECKS_ARE_CALLS})
  set(JSON_OPTIONS -fno-sanitize-address-use-after-scope)  # nearly every value is a temporary one
  # AddressSanitizer sees what UBSan's checks of pointers would. To see when a variable ends it would keep every register
  # tile in memory: kernels would take minutes to compile and many times as long to run.
  set(LOOP_OPTIONS -O2 -fno-sanitize=alignment,pointer-overflow,bounds -fno-sanitize-address-use-after-scope)
endif()

function(apply_sanitizer_options)
  if(NOT SANITIZE MATCHES address)
    return()
  endif()
  # nlohmann's code and libstdc++'s regular expressions: how they use our memory is checked, their arithmetic is not.
  # (Unoptimised they would compile in two thirds of the time, which reading tokenizers would cost again.)
  set_source_files_properties(src/base/json_plain.cc src/base/json_ordered.cc src/quant/pattern.cc PROPERTIES
                              SKIP_PRECOMPILE_HEADERS ON
                              COMPILE_OPTIONS "-fno-sanitize=undefined;-fno-sanitize-address-use-after-scope")
  file(GLOB_RECURSE readers CONFIGURE_DEPENDS src/base/*.cc src/checkpoint/*.cc src/quant/*.cc)
  set_property(SOURCE ${readers} ${UNITED_base} ${UNITED_checkpoint} APPEND PROPERTY COMPILE_OPTIONS -fsanitize=alignment)
  set_property(SOURCE ${UNITED_checkpoint} ${UNITED_engine} ${UNITED_model} ${UNITED_program} ${UNITED_server}
               APPEND PROPERTY COMPILE_OPTIONS ${CHECKS_ARE_CALLS})
endfunction()
