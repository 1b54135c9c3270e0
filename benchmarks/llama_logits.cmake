# Adds llama-logits to llama.cpp's own build, which includes this file right after it has named its project.
add_executable(llama-logits ${CMAKE_CURRENT_LIST_DIR}/llama_logits.cpp)
target_link_libraries(llama-logits PRIVATE llama)
set_target_properties(llama-logits PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
