// The one exception of the runtime: a status, an E_NAME and a message of at most three lines.
#pragma once

#include <stdexcept>
#include <string>

namespace latrt {

// As the exit codes of the command line.
enum class Status { usage = 2, input = 3, bundle = 4, machine = 5 };

class Error : public std::runtime_error {
 public:
    Error(Status status, std::string name, const std::string& message)
        : std::runtime_error(message), status_(status), name_(std::move(name)) {}

    Status status() const { return status_; }
    const std::string& name() const { return name_; }

 private:
    Status status_;
    std::string name_;
};

}  // namespace latrt
