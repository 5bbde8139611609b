// Runs a launch: the threads of a block are fibers of one operating-system thread.
//
// A fiber takes the next thread that has not begun, so that a kernel without barriers runs on one stack as a plain
// loop. Threads go in order, or from the last to the first where EVENKEEL_EMULATOR_ORDER is `reversed`: a missing
// barrier shows in one of both. A barrier that cannot be reached by all ends the process with a message: on a device it
// would hang.

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

#include "device.h"

__thread emulated::Registers emulated::registers;

// Saves the callee's registers on this stack, takes up the other one.
extern "C" __attribute__((visibility("hidden"))) void emulated_switch(void **from, void *to);
asm(R"(
.text
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

namespace emulated {
namespace {

constexpr unsigned MOST_THREADS = 1024;
constexpr unsigned MOST_WARPS = MOST_THREADS / LANES;
// No power of two, so that the stacks' tops do not share lines of the cache.
constexpr size_t STACK = (128 << 10) + 9 * 64;
constexpr uint64_t CANARY = 0x5ca1ab1e0ddba11ull;
// Bytes behind shared memory that must stay as they are.
constexpr size_t BEYOND = 256;

// Whether the last thread goes first. A place is a thread's number in the order of going.
const bool reversed = [] {
    const char *order = std::getenv("EVENKEEL_EMULATOR_ORDER");
    return order && std::string(order) == "reversed";
}();

struct Fiber {
    void *stack_pointer;
    unsigned char *stack;
    // The place to begin with.
    unsigned place;
};

struct Warp {
    // Places that can go on, that wait for the warp, for the block, that are done, and all.
    uint32_t runnable, at_warp, at_block, done, all;
    Slots slots[2];
};

struct Block {
    Warp warps[MOST_WARPS];
    Fiber fibers[MOST_THREADS];
    Fiber *owner[MOST_THREADS];
    unsigned exchanges[MOST_THREADS];
    // Of each place.
    uint3 indices[MOST_THREADS];
    int lanes[MOST_THREADS];
    std::vector<Fiber *> idle;
    std::vector<unsigned char> shared;
    unsigned char *stacks = nullptr;
    void *caller;
    Fiber *current;
    const Call *call;
    unsigned place, threads, warp_count, arrived, done;

    ~Block() {
        if (stacks) munmap(stacks, STACK * MOST_THREADS);
    }
    void prepare(const Grid &grid);
    void start(unsigned count);
    void go_on();
    void leave(unsigned next);
    bool choose(unsigned &next) const;
    void release_block();
    void check_barriers(Warp &warp);
    void set_place(unsigned to) {
        place = to;
        registers.thread = indices[to];
        registers.lane = lanes[to];
    }
};

thread_local std::unique_ptr<Block> own_block;
__thread Block *block;

void Block::prepare(const Grid &grid) {
    threads = grid.threads.x * grid.threads.y * grid.threads.z;
    warp_count = (threads + LANES - 1) / LANES;
    shared.resize(grid.shared + 16 + BEYOND);
    for (unsigned at = 0; at < warp_count * LANES; at++) {
        unsigned of = reversed ? warp_count * LANES - 1 - at : at;
        indices[at] = {of % grid.threads.x, of / grid.threads.x % grid.threads.y,
                       of / (grid.threads.x * grid.threads.y)};
        lanes[at] = int(of % LANES);
    }
    if (stacks) return;
    void *memory =
        mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) die("no memory for stacks");
    stacks = static_cast<unsigned char *>(memory);
    for (unsigned i = 0; i < MOST_THREADS; i++) fibers[i].stack = stacks + STACK * i;
}

void fiber() {
    block->set_place(block->current->place);
    block->go_on();
}

// Begins a fiber whose first thread has this place.
void begin(Fiber &fiber, unsigned place) {
    fiber.place = place;
    auto *canary = reinterpret_cast<uint64_t *>(fiber.stack);
    *canary = CANARY;
    // An entry address below an empty return address, as if called, and six registers below.
    auto **top = reinterpret_cast<void **>(fiber.stack + STACK);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void *>(&emulated::fiber);
    std::fill(top - 8, top - 2, nullptr);
    fiber.stack_pointer = top - 8;
}

// Runs threads until none is left to begin; then another fiber, or the caller.
void Block::go_on() {
    for (;;) {
        call->run();
        if (*reinterpret_cast<uint64_t *>(current->stack) != CANARY)
            die("a kernel needs a larger stack than a fiber has");
        Warp &warp = warps[place / LANES];
        uint32_t bit = 1u << place % LANES;
        warp.runnable &= ~bit;
        warp.done |= bit;
        done++;
        check_barriers(warp);
        unsigned next;
        if (!choose(next)) {
            if (done != threads) die("a barrier was not reached by all threads of its warp or block");
            void *nobody;
            emulated_switch(&nobody, caller);
        }
        if (owner[next]) {
            Fiber *to = owner[next];
            idle.push_back(current);
            current = to;
            void *nobody;
            emulated_switch(&nobody, to->stack_pointer);
        }
        set_place(next);
    }
}

bool Block::choose(unsigned &next) const {
    unsigned warp = place / LANES;
    uint32_t here = warps[warp].runnable;
    if (uint32_t later = here & ~((2u << place % LANES) - 1u)) here = later;
    for (unsigned i = 0; i <= warp_count; i++) {
        if (here) {
            next = warp * LANES + unsigned(__builtin_ctz(here));
            return true;
        }
        warp = warp + 1 == warp_count ? 0 : warp + 1;
        here = warps[warp].runnable;
    }
    return false;
}

void Block::release_block() {
    arrived = 0;
    for (unsigned i = 0; i < warp_count; i++) {
        warps[i].runnable |= warps[i].at_block;
        warps[i].at_block = 0;
    }
}

// Lets those go on whose barrier is complete; who is done counts as arrived.
void Block::check_barriers(Warp &warp) {
    if (warp.at_warp && (warp.at_warp | warp.done) == warp.all) {
        warp.runnable |= warp.at_warp;
        warp.at_warp = 0;
    }
    if (arrived && arrived + done == threads) release_block();
}

// Waits until this thread can go on.
void Block::leave(unsigned self) {
    if (warps[self / LANES].runnable >> self % LANES & 1) return;
    unsigned next;
    if (!choose(next)) die("a barrier was not reached by all threads of its warp or block");
    Fiber *from = current;
    owner[self] = from;
    Fiber *to = owner[next];
    if (!to) {
        to = idle.back();
        idle.pop_back();
        begin(*to, next);
    }
    current = to;
    emulated_switch(&from->stack_pointer, to->stack_pointer);
    owner[self] = nullptr;
    set_place(self);
}

void Block::start(unsigned count) {
    arrived = done = 0;
    for (unsigned i = 0; i < warp_count; i++) {
        unsigned warp = reversed ? warp_count - 1 - i : i;
        unsigned lanes = std::min<unsigned>(LANES, count - warp * LANES);
        uint32_t all = lanes == LANES ? ~0u : (1u << lanes) - 1;
        if (reversed) all <<= LANES - lanes;
        warps[i].runnable = warps[i].all = all;
        warps[i].at_warp = warps[i].at_block = warps[i].done = 0;
    }
    std::fill_n(owner, warp_count * LANES, nullptr);
    std::fill_n(exchanges, warp_count * LANES, 0);
    idle.clear();
    for (unsigned i = count; i-- > 1;) idle.push_back(&fibers[i]);
    current = &fibers[0];
    begin(*current, unsigned(__builtin_ctz(warps[0].all)));
    emulated_switch(&caller, current->stack_pointer);
}

} // namespace

void run(const Call &call, const Grid &grid) {
    if (!own_block) own_block = std::make_unique<Block>();
    block = own_block.get();
    block->prepare(grid);
    block->call = &call;
    registers.blocks = grid.blocks;
    registers.threads = grid.threads;
    for (unsigned z = 0; z < grid.blocks.z; z++)
        for (unsigned y = 0; y < grid.blocks.y; y++)
            for (unsigned x = 0; x < grid.blocks.x; x++) {
                registers.block = {x, y, z};
                std::fill(block->shared.begin(), block->shared.end(), 0xff);
                block->start(block->threads);
                auto *beyond = static_cast<unsigned char *>(dynamic_shared()) + grid.shared;
                if (std::any_of(beyond, beyond + BEYOND, [](unsigned char byte) { return byte != 0xff; }))
                    die("a kernel wrote beyond its shared memory");
            }
}

void *dynamic_shared() {
    auto address = reinterpret_cast<uintptr_t>(block->shared.data());
    return reinterpret_cast<void *>((address + 15) & ~uintptr_t(15));
}

namespace {

void wait_for_warp_of(Block &block) {
    unsigned self = block.place;
    Warp &warp = block.warps[self / LANES];
    uint32_t bit = 1u << self % LANES;
    warp.runnable &= ~bit;
    warp.at_warp |= bit;
    block.check_barriers(warp);
    block.leave(self);
}

} // namespace

void wait_for_block() {
    Block &here = *block;
    unsigned self = here.place;
    Warp &warp = here.warps[self / LANES];
    uint32_t bit = 1u << self % LANES;
    warp.runnable &= ~bit;
    warp.at_block |= bit;
    here.arrived++;
    here.check_barriers(warp);
    here.leave(self);
}

void wait_for_warp() { wait_for_warp_of(*block); }

const Slots &exchange(const void *bytes, size_t size) {
    Block &here = *block;
    unsigned self = here.place;
    Slots &slots = here.warps[self / LANES].slots[here.exchanges[self]++ % 2];
    std::memcpy(slots[here.lanes[self]], bytes, size);
    wait_for_warp_of(here);
    return slots;
}

} // namespace emulated
