#include "read_image.h"

#include <algorithm>
#include <cctype>
#include <csetjmp>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>

#ifdef HAVE_PNG
#include <png.h>
#endif
#ifdef HAVE_JPEG
#include <jpeglib.h>
#endif

namespace {

constexpr size_t kMaxPixels = 50'000'000;

void check_size(size_t width, size_t height) {
    if (width == 0 || height == 0 || width > kMaxPixels / height)
        throw std::runtime_error("image: no pixels, or more than 50 million");
}

// Binary PPM (P6) of 8 bits.
Picture read_ppm(const std::string& data) {
    size_t at = 2, fields[3];
    for (size_t& field : fields) {
        while (at < data.size() &&
               (std::isspace(static_cast<unsigned char>(data[at])) || data[at] == '#')) {
            if (data[at] == '#') at = std::min(data.find('\n', at), data.size() - 1);
            ++at;
        }
        field = 0;
        while (at < data.size() && std::isdigit(static_cast<unsigned char>(data[at])) &&
               field < 1u << 27)
            field = field * 10 + static_cast<size_t>(data[at++] - '0');
    }
    check_size(fields[0], fields[1]);
    const size_t bytes = fields[0] * fields[1] * 3;
    if (fields[2] != 255 || at >= data.size() || data.size() - at - 1 < bytes)
        throw std::runtime_error("image: expected a whole PPM of 8 bits");
    Picture out{static_cast<int>(fields[0]), static_cast<int>(fields[1]), {}};
    out.rgb.assign(data.begin() + static_cast<std::ptrdiff_t>(at) + 1,
                   data.begin() + static_cast<std::ptrdiff_t>(at + 1 + bytes));
    return out;
}

#ifdef HAVE_PNG
Picture read_png(const std::string& data) {
    png_image image = {};
    image.version = PNG_IMAGE_VERSION;
    if (!png_image_begin_read_from_memory(&image, data.data(), data.size()))
        throw std::runtime_error(std::string("image: ") + image.message);
    image.format = PNG_FORMAT_RGB;
    const png_color white = {255, 255, 255};
    Picture out;
    try {
        check_size(image.width, image.height);
        out.width = static_cast<int>(image.width), out.height = static_cast<int>(image.height);
        out.rgb.resize(PNG_IMAGE_SIZE(image));
    } catch (...) {
        png_image_free(&image);
        throw;
    }
    if (!png_image_finish_read(&image, &white, out.rgb.data(), 0, nullptr))
        throw std::runtime_error(std::string("image: ") + image.message);
    return out;
}
#endif

#ifdef HAVE_JPEG
struct JpegErrors {
    jpeg_error_mgr base;
    std::jmp_buf back;
};

void leave(j_common_ptr info) {
    std::longjmp(reinterpret_cast<JpegErrors*>(info->err)->back, 1);
}

// Into `rgb` once it is sized; false where libjpeg fails. Nothing here has a destructor to skip.
bool decode(jpeg_decompress_struct* info, JpegErrors* errors, const std::string& data,
            std::vector<uint8_t>* rgb) {
    if (setjmp(errors->back)) return false;
    if (info->output_scanline == 0 && rgb->empty()) {
        jpeg_mem_src(info, reinterpret_cast<const unsigned char*>(data.data()), data.size());
        jpeg_read_header(info, TRUE);
        info->out_color_space = JCS_RGB;
        jpeg_calc_output_dimensions(info);
        return true;
    }
    jpeg_start_decompress(info);
    while (info->output_scanline < info->output_height) {
        JSAMPROW row = rgb->data() + size_t{3} * info->output_width * info->output_scanline;
        jpeg_read_scanlines(info, &row, 1);
    }
    return true;
}

Picture read_jpeg(const std::string& data) {
    jpeg_decompress_struct info = {};
    JpegErrors errors;
    info.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = leave;
    jpeg_create_decompress(&info);
    Picture out;
    bool fine = decode(&info, &errors, data, &out.rgb) && info.output_width && info.output_height &&
                info.output_width <= kMaxPixels / info.output_height;
    if (fine) {
        out.width = static_cast<int>(info.output_width);
        out.height = static_cast<int>(info.output_height);
        out.rgb.resize(size_t{3} * info.output_width * info.output_height);
        fine = decode(&info, &errors, data, &out.rgb);
    }
    jpeg_destroy_decompress(&info);
    if (!fine) throw std::runtime_error("image: a JPEG that is damaged or too large");
    return out;
}
#endif

}  // namespace

Picture read_image(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("image " + path + ": cannot be read");
    const std::string data{std::istreambuf_iterator<char>(file), {}};
    if (data.compare(0, 2, "P6") == 0) return read_ppm(data);
#ifdef HAVE_PNG
    if (data.compare(0, 4, "\x89PNG") == 0) return read_png(data);
#endif
#ifdef HAVE_JPEG
    if (data.compare(0, 2, "\xff\xd8") == 0) return read_jpeg(data);
#endif
    throw std::runtime_error("image " + path + ": not a format that this program was built for");
}
