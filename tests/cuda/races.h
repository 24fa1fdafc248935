// Whether of any two uses of the same shared memory, one of them writing, one happens before the other: by a barrier of the
// CTA, of a warp or of the cluster, by a barrier in shared memory (mbarrier), whose phase a thread has seen to end, or by a
// packet that was read. What is stored asynchronously may be used once the phase that counts it was seen to end, and what
// is copied once the copies were waited for. Packets count as if they were released and acquired.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ptx::races {

// At the start of each thread.
void enter();

// Before and after what all of `who`, one of the objects of host/, meet at.
void arrive(const void* who);
void wait(const void* who);

void arrive_at(uint32_t barrier);
void seen_to_end(uint32_t barrier);

void released(const void* packet);
void acquired(const void* packet);

void read(const std::byte* at, size_t bytes);
void write(const std::byte* at, size_t bytes);
void store_async(uint32_t to, size_t bytes, uint32_t barrier);  // by whose phase it is counted

void begin_copy(const std::byte* to);  // of 16 bytes
void commit_copies();
void end_copies(size_t but);  // the latest groups

}  // namespace ptx::races
