// HeifBoxes: what will a decoder of this HEIC or AVIF file meet? The boxes (ISO/IEC 14496-12, 23008-12) of the picture
// that is shown, of its parts and its alpha, and the sizes that their coded pictures say themselves (H.265, AV1), which
// need not be those of the boxes. For image/heif.cc, before libheif gets the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace gemma4 {

struct HeifWork {
  uint64_t pixels = 0;   // of all coded pictures
  uint64_t largest = 0;  // of one
};

// Throws Error where the file is damaged, a size is above the limits, or more pictures than one are to be decoded for a
// part.
HeifWork read_heif_boxes(std::span<const std::byte> file);

bool is_heif(std::span<const std::byte> file);  // by its brands

}  // namespace gemma4
