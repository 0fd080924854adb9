// A small service on the loopback interface: one connection asks one question about one picture.
//   latrt_service BUNDLE [PORT [MAX_TOKENS]]    (port 0: any; it prints the one it listens on)
// A request is a line "ask WIDTH HEIGHT QUESTION_BYTES\n", the RGB bytes, the question. The reply
// is "ok\n" and the answer as it comes, or a line "error NAME\n"; then the connection is closed.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <latrt/latrt.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int kMaxConnections = 8, kTimeoutSeconds = 30;
constexpr long kMaxPixels = 50'000'000, kMaxQuestion = 64 << 10;
std::atomic<int> connections{0};

class Connection {
 public:
    explicit Connection(int socket) : socket_(socket) {
        const timeval patience = {kTimeoutSeconds, 0};
        ::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    }
    ~Connection() { ::close(socket_); }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    // Exactly `size` bytes.
    std::string read(size_t size) {
        std::string out(size, '\0');
        for (size_t done = 0; done < size;) {
            const ssize_t got = ::recv(socket_, &out[done], size - done, 0);
            if (got <= 0) throw std::runtime_error("E_REQUEST");
            done += static_cast<size_t>(got);
        }
        return out;
    }

    std::string line() {
        std::string out;
        while (out.size() < 100) {
            const std::string next = read(1);
            if (next == "\n") return out;
            out += next;
        }
        throw std::runtime_error("E_REQUEST");
    }

    // False where the other side has gone.
    bool write(const char* data, size_t size) {
        while (size > 0) {
            const ssize_t sent = ::send(socket_, data, size, MSG_NOSIGNAL);
            if (sent <= 0) return false;
            data += sent, size -= static_cast<size_t>(sent);
        }
        return true;
    }
    bool write(const std::string& text) { return write(text.data(), text.size()); }

 private:
    int socket_;
};

// Who hangs up cancels the answer.
void answer(Connection& connection, const latrt::Model& model, int64_t max_tokens) {
    long width = 0, height = 0, size = 0;
    const std::string line = connection.line();
    if (std::sscanf(line.c_str(), "ask %9ld %9ld %9ld", &width, &height, &size) != 3 || width < 1 ||
        height < 1 || width > kMaxPixels / height || size < 0 || size > kMaxQuestion)
        throw std::runtime_error("E_REQUEST");
    const std::string rgb = connection.read(static_cast<size_t>(width * height * 3));
    const std::string question = connection.read(static_cast<size_t>(size));
    latrt::SessionOptions options;
    options.max_tokens = max_tokens;
    latrt::Session session(model, options);
    session.ask({{reinterpret_cast<const uint8_t*>(rgb.data()), static_cast<int32_t>(width),
                  static_cast<int32_t>(height), 0}},
                question);
    bool begun = false;
    session.run([&](const latrt_event& event) {
        if (event.kind != LATRT_EVENT_TOKEN) return true;
        if (!begun && !connection.write("ok\n")) return false;
        begun = true;
        return connection.write(event.text, event.text_size);
    });
}

void serve(int socket, const latrt::Model& model, int64_t max_tokens) {
    Connection connection(socket);
    try {
        answer(connection, model, max_tokens);
    } catch (const latrt::Error& error) {
        connection.write("error " + error.name() + "\n");
    } catch (const std::exception&) {
        connection.write("error E_REQUEST\n");
    }
    --connections;
}

int listen_on(int port, sockaddr_in& address) {
    const int server = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int yes = 1;
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    sockaddr* generic = reinterpret_cast<sockaddr*>(&address);
    ::setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (server < 0 || ::bind(server, generic, size) != 0 || ::listen(server, 16) != 0 ||
        ::getsockname(server, generic, &size) != 0)
        throw std::runtime_error("cannot listen on port " + std::to_string(port));
    return server;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc > 4) {
        std::fprintf(stderr, "usage: %s BUNDLE [PORT [MAX_TOKENS]]\n", argv[0]);
        return LATRT_USAGE;
    }
    try {
        const latrt::Model model(argv[1]);
        const int64_t max_tokens = argc > 3 ? std::atoi(argv[3]) : 512;
        sockaddr_in address = {};
        const int server = listen_on(argc > 2 ? std::atoi(argv[2]) : 0, address);
        std::printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
        std::fflush(stdout);
        while (true) {
            const int socket = ::accept4(server, nullptr, nullptr, SOCK_CLOEXEC);
            if (socket < 0) continue;
            if (++connections > kMaxConnections) {
                --connections;
                Connection(socket).write("error E_BUSY\n");
                continue;
            }
            std::thread(serve, socket, std::cref(model), max_tokens).detach();
        }
    } catch (const latrt::Error& error) {
        std::fprintf(stderr, "latrt_service: error[%s]: %s\n", error.name().c_str(), error.what());
        return error.status();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "latrt_service: %s\n", error.what());
        return LATRT_MACHINE;
    }
}
