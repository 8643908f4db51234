# Included at the start of llama-cpp-python's CMake project: what is built of llama.cpp, and how.

# For this processor: the fastest form, and the one that people run. The environment's name holds what
# the processor is, so that another machine with the same cache builds its own.
set(GGML_NATIVE ON)
message(STATUS "for processor ${LLORCH_PROCESSOR}")

# The library alone is needed: no images, no programs and what they are made of, no network.
set(LLAVA_BUILD OFF)
set(LLAMA_BUILD_COMMON OFF)
set(LLAMA_BUILD_TOOLS OFF)
set(LLAMA_BUILD_SERVER OFF)
set(LLAMA_BUILD_EXAMPLES OFF)
set(LLAMA_BUILD_TESTS OFF)
set(LLAMA_BUILD_UI OFF)
set(LLAMA_USE_PREBUILT_UI OFF)
set(LLAMA_OPENSSL OFF)

# The CPU alone, whatever else the machine has.
set(GGML_METAL OFF)
set(GGML_BLAS OFF)
set(GGML_ACCELERATE OFF)
set(GGML_CCACHE OFF)
