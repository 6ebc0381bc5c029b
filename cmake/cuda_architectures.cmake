# Which GPUs the CUDA backend is compiled for, where CUDA_ARCHITECTURES does not say: those of this machine, or every
# architecture that is released where there is none. 9.0 is compiled as 90a, which has warpgroup products.
set(ALL_CUDA_ARCHITECTURES 80-real 86-real 89-real 90a-real 100-real 120)

function(find_cuda_architectures result)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE found
                  RESULT_VARIABLE failed ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${found}")
  if(failed OR NOT capabilities)
    set(${result} ${ALL_CUDA_ARCHITECTURES} PARENT_SCOPE)
    return()
  endif()
  list(REMOVE_DUPLICATES capabilities)
  string(REPLACE "." "" architectures "${capabilities}")
  list(TRANSFORM architectures REPLACE "^90$" "90a")
  set(${result} ${architectures} PARENT_SCOPE)
endfunction()
