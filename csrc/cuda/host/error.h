#pragma once

#include <stdexcept>

namespace fusedrnn::host {

// What a kernel may not do. It ends the launch.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace fusedrnn::host
