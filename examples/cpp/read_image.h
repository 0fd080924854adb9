// Image files as RGB: PPM always, PNG and JPEG where their libraries were found.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Picture {
    int width = 0, height = 0;
    std::vector<uint8_t> rgb;
};

// Throws std::runtime_error. Colour profiles and EXIF orientation are not applied; transparent
// PNG pixels stand on white.
Picture read_image(const std::string& path);
