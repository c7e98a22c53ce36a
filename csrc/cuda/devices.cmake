# code: of the devices that are here, what neither sm_80 nor sm_90a serves and nvcc knows, such as "sm_120": their driver
# would compile the PTX at the first start, which takes it half a minute to a minute.
function(octavo_code_of_devices code nvcc)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  TIMEOUT 10 OUTPUT_VARIABLE here RESULT_VARIABLE missing ERROR_QUIET)
  execute_process(COMMAND ${nvcc} --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  set(found)
  if(missing EQUAL 0)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]+" here "${here}")
    foreach(capability ${here})
      string(REPLACE "." "" number ${capability})
      if(capability VERSION_GREATER 9.0 AND known MATCHES "sm_${number}[\r\n]")
        list(APPEND found sm_${number})
      endif()
    endforeach()
    list(REMOVE_DUPLICATES found)
  endif()
  set(${code} ${found} PARENT_SCOPE)
endfunction()
