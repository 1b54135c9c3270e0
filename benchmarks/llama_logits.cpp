// llama.cpp's logits of a text: float32 [tokens, vocabulary] on stdout, for token ids (int32) on stdin.
//
//     llama-logits MODEL.gguf THREADS < ids > logits
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "llama.h"

int main(int argc, char** argv) {
    if (argc != 3) return std::fputs("usage: llama-logits MODEL.gguf THREADS < ids > logits\n", stderr), 2;
    std::vector<llama_token> ids;
    for (int32_t id; std::fread(&id, sizeof id, 1, stdin) == 1;) ids.push_back(id);
    llama_backend_init();
    llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model || ids.empty()) return std::fputs("no model, or no ids\n", stderr), 1;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = static_cast<uint32_t>(ids.size());
    params.n_threads = params.n_threads_batch = std::atoi(argv[2]);
    llama_context* context = llama_init_from_model(model, params);
    if (!context) return std::fputs("no context\n", stderr), 1;
    llama_batch batch = llama_batch_init(static_cast<int32_t>(ids.size()), 0, 1);
    for (int32_t& i = batch.n_tokens; i < static_cast<int32_t>(ids.size()); ++i) {
        batch.token[i] = ids[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;  // of every token, not of the last one alone
    }
    if (llama_decode(context, batch)) return std::fputs("llama_decode failed\n", stderr), 1;
    const size_t words = llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (std::fwrite(llama_get_logits_ith(context, i), sizeof(float), words, stdout) != words) return 1;
    }
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
}
