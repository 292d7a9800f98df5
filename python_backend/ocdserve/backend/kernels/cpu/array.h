// SPDX-License-Identifier: Apache-2.0
// Memory of one call: no exceptions and no C++ library at run time, so that the compiled file runs everywhere.
#pragma once

#include "cpu.h"

// Items of a plain type, not initialised; `reserve` returns whether there was enough memory.
template <class Item>
class Array {
public:
    Array() = default;
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    ~Array() { free(items_); }

    Item& operator[](size_t index) { return items_[index]; }
    const Item& operator[](size_t index) const { return items_[index]; }
    Item* data() { return items_; }
    const Item* data() const { return items_; }

    // Make room for `count` items; existing items are kept.
    bool reserve(size_t count) {
        if (count <= capacity_) return true;
        const size_t wanted = max(count, 2 * capacity_);
        void* grown = realloc(items_, wanted * sizeof(Item));
        if (!grown) return false;
        items_ = static_cast<Item*>(grown);
        capacity_ = wanted;
        return true;
    }

private:
    Item* items_ = nullptr;
    size_t capacity_ = 0;
};
