// Asks a model about an image file and prints the answer as it comes:
//   latrt_ask BUNDLE IMAGE QUESTION [POLICY [MAX_TOKENS]]
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <latrt/latrt.hpp>

#include "read_image.h"

int main(int argc, char** argv) {
    if (argc < 4 || argc > 6) {
        std::fprintf(stderr, "usage: %s BUNDLE IMAGE QUESTION [POLICY [MAX_TOKENS]]\n", argv[0]);
        return LATRT_USAGE;
    }
    try {
        const Picture picture = read_image(argv[2]);
        const latrt::Model model(argv[1]);
        latrt::SessionOptions options;
        if (argc > 4) options.policy = argv[4];
        if (argc > 5) options.max_tokens = std::atoi(argv[5]);
        latrt::Session session(model, options);
        session.ask({{picture.rgb.data(), picture.width, picture.height, 0}}, argv[3]);
        session.run([](const latrt_event& event) {
            if (event.kind == LATRT_EVENT_TOKEN) {
                std::fwrite(event.text, 1, event.text_size, stdout);
                std::fflush(stdout);
            } else if (event.kind == LATRT_EVENT_REINJECT) {
                std::fprintf(stderr, "[%zu visual tokens again%s%s]\n", event.num_selected,
                             *event.skipped ? ", skipped: " : "", event.skipped);
            }
            return true;
        });
        std::printf("\n");
    } catch (const latrt::Error& error) {
        std::fprintf(stderr, "latrt_ask: error[%s]: %s\n", error.name().c_str(), error.what());
        return error.status();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "latrt_ask: %s\n", error.what());
        return LATRT_INPUT;
    }
}
