#include "image/heif_boxes.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "image/codecs.h"

namespace gemma4 {
namespace {

using Bytes = std::span<const std::byte>;

constexpr size_t kItemsMax = 20000;  // also of references and properties; a camera's files have 200
constexpr int kVisitsMax = 10000;    // parts of the picture, and parts of parts

[[noreturn]] void throw_heif() { throw Error("the HEIC or AVIF image is damaged or cut short"); }

// Reads numbers in order; the file's are big-endian.
class HeifBytes {
 public:
  explicit HeifBytes(Bytes bytes) : bytes_(bytes) {}
  uint64_t number(size_t size) {
    need(size);
    uint64_t value = 0;
    for (size_t i = 0; i < size; ++i) value = value << 8 | std::to_integer<uint64_t>(bytes_[i]);
    bytes_ = bytes_.subspan(size);
    return value;
  }
  uint8_t byte() { return static_cast<uint8_t>(number(1)); }
  uint16_t pair() { return static_cast<uint16_t>(number(2)); }
  uint32_t word() { return static_cast<uint32_t>(number(4)); }
  uint32_t id(bool wide) { return wide ? word() : pair(); }
  std::string_view name() {
    const Bytes four = take(4);
    return {reinterpret_cast<const char*>(four.data()), 4};
  }
  Bytes take(uint64_t size) {
    need(size);
    const Bytes taken = bytes_.first(static_cast<size_t>(size));
    bytes_ = bytes_.subspan(static_cast<size_t>(size));
    return taken;
  }
  Bytes rest() const { return bytes_; }
  bool empty() const { return bytes_.empty(); }

 private:
  void need(uint64_t size) const {
    if (bytes_.size() < size) throw_heif();
  }
  Bytes bytes_;
};

// Calls `read` with each box's name and content.
template <typename Read>
void each_box(Bytes bytes, Read read) {
  HeifBytes all(bytes);
  size_t boxes = 0;
  while (all.rest().size() >= 8) {
    if (++boxes > kItemsMax) throw_heif();
    const size_t before = all.rest().size();
    uint64_t size = all.word();
    const std::string_view name = all.name();
    if (size == 1) size = all.number(8);
    const size_t header = before - all.rest().size();
    if (size == 0) size = before;
    if (size < header) throw_heif();
    read(name, all.take(size - header));
  }
}

// Bits of H.265 and AV1, from the most significant.
class HeifBits {
 public:
  explicit HeifBits(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {}
  uint32_t bits(int count) {
    uint32_t value = 0;
    for (; count > 0; --count, ++at_) {
      if (at_ / 8 >= bytes_.size()) throw_heif();
      value = value << 1 | (bytes_[at_ / 8] >> (7 - at_ % 8) & 1u);
    }
    return value;
  }
  void skip(size_t count) { at_ += count; }
  uint32_t exp_golomb() {
    int zeros = 0;
    while (bits(1) == 0) {
      if (++zeros > 31) throw_heif();
    }
    return zeros == 0 ? 0 : (1u << zeros) - 1 + bits(zeros);
  }

 private:
  std::vector<uint8_t> bytes_;
  size_t at_ = 0;
};

std::vector<uint8_t> copy_of(Bytes bytes) {
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  return {data, data + bytes.size()};
}

struct CodedSize {
  uint64_t pixels = 0;  // the largest that was seen
  int pictures = 0;

  void see(uint64_t width, uint64_t height) {
    check_image_size(width, height);
    pixels = std::max(pixels, width * height);
  }
};

// H.265, 7.3.2.2: the beginning of a sequence parameter set. `unit` begins with the NAL header.
void read_sequence_parameters(Bytes unit, CodedSize& size) {
  std::vector<uint8_t> bytes;
  const std::vector<uint8_t> raw = copy_of(unit.subspan(0, std::min<size_t>(unit.size(), 400)));
  for (size_t i = 2; i < raw.size(); ++i) {  // without the 3 of each 0 0 3
    const bool stuffed = raw[i] == 3 && bytes.size() >= 2 && i >= 4 && raw[i - 1] == 0 && raw[i - 2] == 0;
    if (!stuffed) bytes.push_back(raw[i]);
  }
  HeifBits in(std::move(bytes));
  in.skip(4);
  const uint32_t layers = in.bits(3);  // below the highest
  in.skip(1 + 88 + 8);
  if (layers > 6) throw_heif();
  uint32_t profiles = 0, levels = 0;
  for (uint32_t i = 0; i < (layers > 0 ? 8 : 0); ++i) {
    const bool profile = in.bits(1) != 0, level = in.bits(1) != 0;
    if (i < layers) profiles += profile, levels += level;
  }
  in.skip(size_t{88} * profiles + size_t{8} * levels);
  in.exp_golomb();
  if (in.exp_golomb() == 3) in.skip(1);
  const uint64_t width = in.exp_golomb(), height = in.exp_golomb();
  size.see(width, height);
}

// One NAL unit of H.265: its parameters, or a part of a picture.
void read_hevc_unit(Bytes unit, CodedSize& size) {
  if (unit.size() < 3) throw_heif();
  const int type = std::to_integer<int>(unit[0]) >> 1 & 63;
  const int layer = (std::to_integer<int>(unit[0]) & 1) << 5 | std::to_integer<int>(unit[1]) >> 3;
  if (layer > 0) return;  // decoders of one layer drop it
  if (type == 33) read_sequence_parameters(unit, size);
  if (type < 32 && std::to_integer<int>(unit[2]) >= 128) ++size.pictures;  // its first slice
}

void read_hevc_configuration(Bytes box, CodedSize& size) {
  HeifBytes in(box);
  in.take(21);
  if ((in.byte() & 3) != 3) throw Error("the HEIC image has lengths that are not of 4 bytes, which is not supported");
  for (int arrays = in.byte(); arrays > 0; --arrays) {
    in.byte();
    for (int units = in.pair(); units > 0; --units) read_hevc_unit(in.take(in.pair()), size);
  }
}

void read_hevc_data(Bytes data, CodedSize& size) {
  HeifBytes in(data);
  while (!in.empty()) read_hevc_unit(in.take(in.word()), size);
}

// AV1, 5.5: the beginning of a sequence header.
void read_av1_sequence(Bytes unit, CodedSize& size) {
  HeifBits in(copy_of(unit.subspan(0, std::min<size_t>(unit.size(), 1000))));
  in.skip(4);
  if (in.bits(1) != 0) {  // a still picture's short form
    in.skip(5);
  } else {
    bool model = false;
    uint32_t delay_bits = 0;
    if (in.bits(1) != 0) {  // timing
      in.skip(64);
      if (in.bits(1) != 0) in.exp_golomb();
      model = in.bits(1) != 0;
      if (model) delay_bits = in.bits(5) + 1;
      if (model) in.skip(32 + 10);
    }
    const bool delays = in.bits(1) != 0;
    for (uint32_t points = in.bits(5) + 1; points > 0; --points) {
      in.skip(12);
      if (in.bits(5) > 7) in.skip(1);
      if (model && in.bits(1) != 0) in.skip(2 * delay_bits + 1);
      if (delays && in.bits(1) != 0) in.skip(4);
    }
  }
  const int width_bits = static_cast<int>(in.bits(4)) + 1, height_bits = static_cast<int>(in.bits(4)) + 1;
  const uint64_t width = uint64_t{in.bits(width_bits)} + 1, height = uint64_t{in.bits(height_bits)} + 1;
  size.see(width, height);
}

void read_av1_data(Bytes data, CodedSize& size) {
  constexpr int kSequence = 1, kFrameHeader = 3, kFrame = 6;
  HeifBytes in(data);
  while (!in.empty()) {
    const int header = in.byte(), type = header >> 3 & 15;
    if ((header & 4) != 0) in.byte();
    uint64_t length = in.rest().size();
    if ((header & 2) != 0) {
      length = 0;
      for (int shift = 0;; shift += 7) {
        const uint64_t next = in.byte();
        length |= (next & 127) << shift;
        if (next < 128) break;
        if (shift > 48) throw_heif();
      }
    }
    const Bytes unit = in.take(length);
    if (type == kSequence) read_av1_sequence(unit, size);
    if (type == kFrameHeader || type == kFrame) ++size.pictures;
  }
}

struct HeifItem {
  std::string type;
  std::vector<Bytes> extents;
  std::vector<size_t> properties;  // numbers of ipco's boxes, from 0
  std::vector<uint32_t> parts;     // dimg
  std::vector<uint32_t> alpha_of;  // auxl
};

class HeifFile {
 public:
  explicit HeifFile(Bytes file) : file_(file) {
    bool found = false;
    each_box(file, [&](std::string_view name, Bytes box) {
      if (name != "meta") return;
      if (found) throw_heif();
      found = true;
      read_meta(box);
    });
    if (!found) throw_heif();
  }

  HeifWork work() const {
    HeifWork work;
    std::vector<uint32_t> list = {primary_};
    for (const auto& [id, item] : items_) {
      if (std::ranges::find(item.alpha_of, primary_) != item.alpha_of.end()) list.push_back(id);
    }
    int visits = 0;
    while (!list.empty()) {
      const auto found = items_.find(list.back());
      list.pop_back();
      if (found == items_.end()) throw_heif();
      if (++visits > kVisitsMax) throw Error("the HEIC or AVIF image has too many parts");
      add(found->second, list, work);
    }
    return work;
  }

 private:
  void read_meta(Bytes meta) {
    HeifBytes in(meta);
    in.word();
    each_box(in.rest(), [&](std::string_view name, Bytes box) {
      if (name == "idat") data_ = box;
    });
    each_box(in.rest(), [&](std::string_view name, Bytes box) {
      HeifBytes content(box);
      if (name == "iprp") return read_properties(box);
      if (name != "pitm" && name != "iinf" && name != "iloc" && name != "iref") return;
      const uint32_t version = content.word() >> 24;
      if (name == "pitm") primary_ = content.id(version > 0);
      if (name == "iinf") read_items(content, version);
      if (name == "iloc") read_locations(content, version);
      if (name == "iref") read_references(content.rest(), version);
    });
  }

  HeifItem& item(uint32_t id) {
    if (items_.size() >= kItemsMax && !items_.contains(id)) throw_heif();
    return items_[id];
  }

  void read_items(HeifBytes in, uint32_t version) {
    in.id(version > 0);
    each_box(in.rest(), [&](std::string_view name, Bytes box) {
      if (name != "infe") return;
      HeifBytes entry(box);
      const uint32_t kind = entry.word() >> 24;
      if (kind < 2) return;
      const uint32_t id = entry.id(kind > 2);
      entry.pair();
      item(id).type = entry.name();
    });
  }

  void read_locations(HeifBytes in, uint32_t version) {
    const int sizes = in.byte(), more = in.byte();
    const auto number = [&](int size) { return size == 0 ? 0 : in.number(static_cast<size_t>(size)); };
    for (uint32_t count = in.id(version > 1); count > 0; --count) {
      HeifItem& found = item(in.id(version > 1));
      const int method = version > 0 ? in.pair() & 15 : 0;
      in.pair();
      const uint64_t base = number(more >> 4);
      if (method > 1) throw Error("the HEIC or AVIF image is stored in a way that is not supported");
      const Bytes from = method == 1 ? data_ : file_;
      for (int extents = in.pair(); extents > 0; --extents) {
        if (version > 0) number(more & 15);
        const uint64_t offset = base + number(sizes >> 4), length = number(sizes & 15);
        if (offset > from.size() || length > from.size() - offset) throw_heif();
        found.extents.push_back(from.subspan(offset, length == 0 ? from.size() - offset : length));
        if (++extents_ > kItemsMax) throw_heif();
      }
    }
  }

  void read_references(Bytes boxes, uint32_t version) {
    each_box(boxes, [&](std::string_view name, Bytes box) {
      HeifBytes in(box);
      HeifItem& from = item(in.id(version > 0));
      for (int count = in.pair(); count > 0; --count) {
        const uint32_t to = in.id(version > 0);
        if (++references_ > kItemsMax) throw_heif();
        if (name == "dimg") from.parts.push_back(to);
        if (name == "auxl") from.alpha_of.push_back(to);
      }
    });
  }

  void read_properties(Bytes box) {
    each_box(box, [&](std::string_view name, Bytes inner) {
      if (name == "ipco") {
        each_box(inner, [&](std::string_view type, Bytes property) { properties_.emplace_back(type, property); });
      }
      if (name != "ipma") return;
      HeifBytes in(inner);
      const uint32_t head = in.word();
      const bool wide = (head & 1) != 0;
      for (uint32_t count = in.word(); count > 0; --count) {
        HeifItem& found = item(in.id(head >> 24 > 0));
        for (int numbers = in.byte(); numbers > 0; --numbers) {
          const uint32_t number = wide ? in.pair() & 0x7fff : in.byte() & 0x7f;
          if (number > 0) found.properties.push_back(number - 1);
        }
      }
    });
  }

  void add(const HeifItem& part, std::vector<uint32_t>& list, HeifWork& work) const {
    const bool hevc = part.type == "hvc1", av1 = part.type == "av01";
    CodedSize size;
    for (const size_t number : part.properties) {
      if (number >= properties_.size()) throw_heif();
      const auto& [name, box] = properties_[number];
      HeifBytes in(box);
      if (name == "ispe") {
        in.word();
        const uint32_t width = in.word(), height = in.word();
        check_image_size(width, height);
      }
      if (name == "hvcC" && hevc) read_hevc_configuration(box, size);
      if (name == "av1C" && av1) read_av1_data(box.subspan(std::min<size_t>(4, box.size())), size);
    }
    if (hevc || av1) return add_coded(part, size, work);
    if (part.type == "grid" || part.type == "iovl") check_canvas(part);
    if (part.type != "grid" && part.type != "iovl" && part.type != "iden") {
      throw Error("the image is of a kind of HEIF other than HEIC and AVIF, which is not supported");
    }
    list.insert(list.end(), part.parts.begin(), part.parts.end());
    if (list.size() > static_cast<size_t>(kVisitsMax)) throw Error("the HEIC or AVIF image has too many parts");
  }

  void add_coded(const HeifItem& part, CodedSize size, HeifWork& work) const {
    size.pictures = 0;  // the configuration has none
    std::vector<std::byte> joined;
    Bytes data;
    if (part.extents.size() == 1) {
      data = part.extents[0];
    } else {
      size_t total = 0;
      for (const Bytes extent : part.extents) total += extent.size();
      if (total > file_.size()) throw_heif();
      for (const Bytes extent : part.extents) joined.insert(joined.end(), extent.begin(), extent.end());
      data = joined;
    }
    if (part.type == "hvc1") {
      read_hevc_data(data, size);
    } else {
      read_av1_data(data, size);
    }
    if (size.pictures > (part.type == "hvc1" ? 1 : 4)) {  // AV1: as many layers
      throw Error("the HEIC or AVIF image holds several pictures where one is expected");
    }
    if (size.pixels == 0 || size.pictures == 0) throw_heif();
    work.pixels += size.pixels * static_cast<uint64_t>(size.pictures);
    work.largest = std::max(work.largest, size.pixels);
    if (work.pixels > 2 * static_cast<uint64_t>(kMaxImagePixels)) {
      throw Error("the image is too large: its parts have more than " + std::to_string(2 * kMaxImagePixels) +
                  " pixels");
    }
  }

  static void check_canvas(const HeifItem& part) {
    if (part.extents.empty()) throw_heif();
    HeifBytes in(part.extents[0]);
    in.byte();
    const bool wide = (in.byte() & 1) != 0;
    in.take(part.type == "grid" ? 2 : 8);
    const uint32_t width = in.id(wide), height = in.id(wide);
    check_image_size(width, height);
  }

  Bytes file_, data_;
  uint32_t primary_ = 0;
  size_t extents_ = 0, references_ = 0;
  std::map<uint32_t, HeifItem> items_;
  std::vector<std::pair<std::string, Bytes>> properties_;
};

}  // namespace

bool is_heif(Bytes file) {
  static const std::set<std::string_view> kBrands = {"heic", "heix", "heim", "heis", "mif1", "mif2",
                                                     "avif", "avio", "miaf", "MA1A", "MA1B"};
  if (file.size() < 16) return false;
  const std::string_view text(reinterpret_cast<const char*>(file.data()), std::min<size_t>(file.size(), 256));
  if (text.substr(4, 4) != "ftyp") return false;
  HeifBytes in(file);
  const size_t end = std::min<size_t>(in.word(), text.size());
  for (size_t at = 8; at + 4 <= end; at += 4) {
    if (at != 12 && kBrands.contains(text.substr(at, 4))) return true;
  }
  return false;
}

HeifWork read_heif_boxes(Bytes file) { return HeifFile(file).work(); }

}  // namespace gemma4
