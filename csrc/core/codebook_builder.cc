#include "core/codebook_builder.h"

#include <algorithm>
#include <array>
#include <concepts>
#include <cstring>
#include <filesystem>
#include <limits>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <vector>

#include "core/atomic_file.h"
#include "core/codebook_format.h"
#include "core/external_sort.h"
#include "core/hash.h"
#include "core/mapped_file.h"

namespace gr2 {
namespace {

using codebook_format::Header;
using codebook_format::StringKey;

constexpr std::uint64_t kFingerprintSeeds[2] = {0x243f6a8885a308d3u, 0x13198a2e03707344u};
// How many keys from the lowest int64 on are watched, to find one that no item has.
constexpr std::uint64_t kWatchedKeys = 65536;

using Codes = std::array<std::uint16_t, codebook_format::kMaxLevels>;

std::uint64_t hash_of(std::int64_t id) {
  return mix64(static_cast<std::uint64_t>(id));
}
std::uint64_t hash_of(std::string_view id) {
  return StringKey::of(id).hash();
}
std::string show(std::int64_t id) {
  return std::to_string(id);
}
std::string show(std::string_view id) {
  return "'" + std::string(id) + "'";
}

// An item in the order of its slot: by hash, and by ID where strings have one hash.
template <typename Id>
struct Item {
  std::uint64_t hash = 0;
  Id id{};
  Codes codes{};

  bool operator<(const Item& other) const { return hash != other.hash ? hash < other.hash : id < other.id; }

  std::size_t heap_bytes() const {
    if constexpr (std::same_as<Id, std::string>) return id.capacity() > 15 ? id.capacity() + 1 : 0;
    return 0;
  }
  void save(ScratchFile& file) const {
    file.append(&hash, sizeof hash);
    file.append(codes.data(), sizeof codes);
    if constexpr (std::same_as<Id, std::string>) {
      const auto length = static_cast<std::uint32_t>(id.size());
      file.append(&length, sizeof length);
      file.append(id.data(), id.size());
    } else {
      file.append(&id, sizeof id);
    }
  }
  void load(ScratchFile::Reader& from) {
    from.read(&hash, sizeof hash);
    from.read(codes.data(), sizeof codes);
    if constexpr (std::same_as<Id, std::string>) {
      std::uint32_t length = 0;
      from.read(&length, sizeof length);
      id.resize(length);
      from.read(id.data(), length);
    } else {
      from.read(&id, sizeof id);
    }
  }
};

// An entry of the index from codes to slots.
struct IndexEntry {
  std::uint64_t hash = 0;
  std::uint64_t slot = 0;

  bool operator<(const IndexEntry& other) const { return hash != other.hash ? hash < other.hash : slot < other.slot; }
  static std::size_t heap_bytes() { return 0; }
  void save(ScratchFile& file) const { file.append(this, sizeof *this); }
  void load(ScratchFile::Reader& from) { from.read(this, sizeof *this); }
};

// A load of at most 0.6.
std::uint64_t capacity_for(std::uint64_t count) {
  return std::max<std::uint64_t>(1, (count * 5 + 2) / 3);
}

// Appends `count` copies of `bytes`.
void repeat(AtomicFile& file, std::span<const std::byte> bytes, std::uint64_t count) {
  for (; count > 0; --count) file.append(bytes.data(), bytes.size());
}

void copy(AtomicFile& to, ScratchFile& from) {
  from.flush();
  ScratchFile::Reader reader(from, 0, from.size());
  std::vector<std::byte> block(std::size_t{1} << 16);
  for (std::uint64_t left = from.size(); left > 0;) {
    const auto part = static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), left));
    reader.read(block.data(), part);
    to.append(block.data(), part);
    left -= part;
  }
}

}  // namespace

class CodebookBuilder::Items {
 public:
  virtual ~Items() = default;
  virtual void add(std::span<const std::int64_t> ids, std::span<const std::uint16_t> codes) = 0;
  virtual void add(std::span<const std::string_view> ids, std::span<const std::uint16_t> codes) = 0;
  virtual void finish() = 0;

  std::mutex mutex;
  std::uint64_t count = 0;
};

namespace {

// Id is std::int64_t or std::string.
template <typename Id>
class ItemsOf final : public CodebookBuilder::Items {
 public:
  explicit ItemsOf(const CodebookPlan& plan) : plan_(plan), sorted_(scratch_folder(plan), plan.memory_bytes / 2) {
    header_.key_type = std::same_as<Id, std::int64_t> ? codebook_format::kInt64Keys : codebook_format::kStringKeys;
    header_.levels = plan.levels;
    header_.level_size = plan.level_size;
  }

  void add(std::span<const std::int64_t> ids, std::span<const std::uint16_t> codes) override { take(ids, codes); }
  void add(std::span<const std::string_view> ids, std::span<const std::uint16_t> codes) override { take(ids, codes); }

  void finish() override {
    require_usable();
    // What is drained is gone, so a failure cannot be tried again.
    ended_ = "the codebook is finished, or could not be";
    AtomicFile file(plan_.path);
    const std::array<std::byte, sizeof(Header)> blank{};
    file.append(blank.data(), blank.size());
    ExternalSort<IndexEntry> index(scratch_folder(plan_), plan_.memory_bytes / 2);
    std::optional<ScratchFile> pool;
    if constexpr (std::same_as<Id, std::string>) pool.emplace(scratch_folder(plan_));
    write_slots(file, index, pool);
    write_index(file, index);
    header_.pool_offset = file.size();
    if (pool) copy(file, *pool);
    header_.pool_bytes = file.size() - header_.pool_offset;
    file.flush();
    seal(file);
    file.commit();
  }

 private:
  static std::string scratch_folder(const CodebookPlan& plan) {
    if (!plan.scratch.empty()) return plan.scratch;
    const std::filesystem::path target(plan.path);
    return target.has_parent_path() ? target.parent_path().string() : ".";
  }

  template <typename Given>
  void take(std::span<const Given> ids, std::span<const std::uint16_t> codes) {
    constexpr bool kSame = std::same_as<Given, std::int64_t> == std::same_as<Id, std::int64_t>;
    require_usable();
    if constexpr (!kSame) {
      throw std::invalid_argument(std::string("item_ids must be ") +
                                  (std::same_as<Id, std::int64_t> ? "int64" : "strings") + ", as this codebook's");
    } else {
      check(ids, codes);
      // Until all is taken: some items may be in already when a run cannot be written.
      ended_ = "items were lost when a part could not be written; begin anew";
      const std::size_t levels = plan_.levels;
      for (std::size_t row = 0; row < ids.size(); ++row) {
        Item<Id> item{hash_of(ids[row]), Id(ids[row]), {}};
        std::copy_n(codes.data() + row * levels, levels, item.codes.data());
        account(ids[row], item);
        sorted_.add(std::move(item));
      }
      count += ids.size();
      ended_ = nullptr;
    }
  }

  void require_usable() const {
    if (ended_ != nullptr) throw std::logic_error(ended_);
  }

  template <typename Given>
  void check(std::span<const Given> ids, std::span<const std::uint16_t> codes) const {
    const std::size_t levels = plan_.levels;
    if (codes.size() != ids.size() * levels) {
      throw std::invalid_argument("codes has " + std::to_string(codes.size() / levels) + " rows for " +
                                  std::to_string(ids.size()) + " item IDs");
    }
    for (std::size_t i = 0; i < codes.size(); ++i) {
      if (codes[i] >= plan_.level_size) {
        throw std::invalid_argument("codes row " + std::to_string(i / levels) + " level " + std::to_string(i % levels) +
                                    " is " + std::to_string(codes[i]) + ", level_size is " +
                                    std::to_string(plan_.level_size));
      }
    }
    if constexpr (std::same_as<Given, std::string_view>) {
      for (const std::string_view id : ids) {
        if (id.size() > std::numeric_limits<std::uint32_t>::max())
          throw std::invalid_argument("an item ID has over 4 GiB");
      }
    }
  }

  // One hash an item is summed, so that the order of the items and the layout of the file play no part.
  template <typename Given>
  void account(const Given& id, const Item<Id>& item) {
    for (std::size_t half = 0; half < 2; ++half) {
      const std::uint64_t seed = kFingerprintSeeds[half];
      std::uint64_t hash = item.hash;
      if constexpr (std::same_as<Given, std::string_view>) hash = hash_bytes(id.data(), id.size(), seed);
      fingerprint_[half] += hash_bytes(item.codes.data(), 2 * std::size_t{plan_.levels}, hash ^ seed);
    }
    if constexpr (std::same_as<Given, std::int64_t>) {
      const std::uint64_t above = static_cast<std::uint64_t>(id) - lowest_key();
      if (above < kWatchedKeys) near_lowest_.insert(above);
    }
  }

  static std::uint64_t lowest_key() { return static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::min()); }

  // A key that no item has; a string's key is never all zeros.
  std::uint64_t unused_key() const {
    if constexpr (std::same_as<Id, std::string>) return 0;
    std::uint64_t above = 0;
    while (near_lowest_.contains(above)) ++above;
    if (above == kWatchedKeys) throw std::invalid_argument("the 65,536 lowest int64 values are all item IDs");
    return lowest_key() + above;
  }

  void write_slots(AtomicFile& file, ExternalSort<IndexEntry>& index, std::optional<ScratchFile>& pool) {
    header_.count = count;
    header_.capacity = capacity_for(count);
    header_.empty_key = unused_key();
    header_.slot_bytes = codebook_format::slot_bytes(header_.key_type, header_.levels);
    header_.slots_offset = file.size();
    std::array<std::byte, 32> empty{}, slot{};
    static_assert(codebook_format::slot_bytes(codebook_format::kStringKeys, codebook_format::kMaxLevels) == 32);
    std::memcpy(empty.data(), &header_.empty_key, sizeof header_.empty_key);
    const std::span<const std::byte> blank(empty.data(), header_.slot_bytes);
    const std::size_t codes_bytes = 2 * std::size_t{header_.levels};
    std::uint64_t next = 0;
    std::optional<Id> previous;
    sorted_.drain([&](const Item<Id>& item) {
      if (previous == item.id)
        throw std::invalid_argument("item_ids must be unique, " + show(item.id) + " comes more than once");
      previous = item.id;
      const std::uint64_t place = std::max(next, scale(item.hash, header_.capacity));
      repeat(file, blank, place - next);
      if constexpr (std::same_as<Id, std::string>) {
        const StringKey key = string_key(item, *pool);
        std::memcpy(slot.data(), &key, sizeof key);
      } else {
        std::memcpy(slot.data(), &item.id, sizeof item.id);
      }
      std::memcpy(slot.data() + codebook_format::codes_offset(header_.key_type), item.codes.data(), codes_bytes);
      file.append(slot.data(), header_.slot_bytes);
      index.add({hash_bytes(item.codes.data(), codes_bytes), place});
      next = place + 1;
    });
    // At least one empty slot ends the last probe.
    header_.slot_count = std::max(header_.capacity, next + 1);
    repeat(file, blank, header_.slot_count - next);
  }

  // A long string is appended to the pool.
  static StringKey string_key(const Item<std::string>& item, ScratchFile& pool) {
    StringKey key = StringKey::of(item.id);
    if (!key.pooled()) return key;
    key.high |= pool.size();
    const auto length = static_cast<std::uint32_t>(item.id.size());
    pool.append(&length, sizeof length);
    pool.append(item.id.data(), item.id.size());
    return key;
  }

  void write_index(AtomicFile& file, ExternalSort<IndexEntry>& index) {
    header_.index_offset = file.size();
    header_.index_capacity = header_.capacity;
    header_.index_width = codebook_format::index_width(header_.slot_count);
    const std::array<std::byte, 8> empty{};
    const std::span<const std::byte> blank(empty.data(), header_.index_width);
    std::uint64_t next = 0;
    index.drain([&](const IndexEntry& entry) {
      const std::uint64_t place = std::max(next, scale(entry.hash, header_.index_capacity)), value = entry.slot + 1;
      repeat(file, blank, place - next);
      file.append(&value, header_.index_width);
      next = place + 1;
    });
    header_.index_count = std::max(header_.index_capacity, next + 1);
    repeat(file, blank, header_.index_count - next);
  }

  void seal(AtomicFile& file) {
    std::memcpy(header_.magic, codebook_format::kMagic, sizeof header_.magic);
    header_.version = codebook_format::kVersion;
    header_.byte_order = codebook_format::kByteOrder;
    const std::uint32_t shape[4] = {header_.key_type, header_.levels, header_.level_size, 0};
    for (std::size_t half = 0; half < 2; ++half)
      header_.fingerprint[half] = mix64(fingerprint_[half] + hash_bytes(shape, sizeof shape, kFingerprintSeeds[half]));
    {
      const MappedFile written(file.temporary());
      const std::span<const std::byte> body = written.bytes().subspan(sizeof(Header));
      header_.body_checksum = hash_bytes(body.data(), body.size());
    }
    header_.header_checksum = hash_bytes(&header_, codebook_format::kCheckedHeaderBytes);
    file.write_front(std::as_bytes(std::span(&header_, 1)));
  }

  const CodebookPlan& plan_;
  Header header_{};
  ExternalSort<Item<Id>> sorted_;
  std::uint64_t fingerprint_[2] = {};
  std::set<std::uint64_t> near_lowest_;
  const char* ended_ = nullptr;  // why nothing more is taken
};

}  // namespace

CodebookBuilder::CodebookBuilder(CodebookPlan plan) : plan_(std::move(plan)) {
  if (plan_.levels < 1 || plan_.levels > codebook_format::kMaxLevels) {
    throw std::invalid_argument("codes must have 1 to 8 levels, got " + std::to_string(plan_.levels));
  }
  if (plan_.level_size < 1 || plan_.level_size > codebook_format::kMaxLevelSize) {
    throw std::invalid_argument("level_size must be 1 to 65536, got " + std::to_string(plan_.level_size));
  }
  if (plan_.string_ids) {
    items_ = std::make_unique<ItemsOf<std::string>>(plan_);
  } else {
    items_ = std::make_unique<ItemsOf<std::int64_t>>(plan_);
  }
}

CodebookBuilder::~CodebookBuilder() = default;

void CodebookBuilder::add(std::span<const std::int64_t> ids, std::span<const std::uint16_t> codes) {
  const std::scoped_lock lock(items_->mutex);
  items_->add(ids, codes);
}

void CodebookBuilder::add(std::span<const std::string_view> ids, std::span<const std::uint16_t> codes) {
  const std::scoped_lock lock(items_->mutex);
  items_->add(ids, codes);
}

std::uint64_t CodebookBuilder::size() const {
  const std::scoped_lock lock(items_->mutex);
  return items_->count;
}

void CodebookBuilder::finish() {
  const std::scoped_lock lock(items_->mutex);
  items_->finish();
}

}  // namespace gr2
