// What a processor is asked to do, by the nanosecond: run as it is on the host, and as the init of guests.
//
// Prints "ROW name nanoseconds" for each test, the median of some rounds, and "DONE"; as process 1 it then
// waits to be ended. It is static and needs no file but itself, which it executes again, with an argument, to do
// nothing.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 5, MIB = 1 << 20 };
static const double ROUND_SECONDS = 0.1;

// What the compiler must believe is used.
static volatile uint64_t sink;
static char *self;

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

// ---- integer: a list, a matrix, a state machine and a checksum, as small controllers do

struct node {
    struct node *next;
    int16_t value;
};

static uint16_t crc16(uint16_t crc, uint16_t data)
{
    for (int bit = 0; bit < 16; bit++, data >>= 1)
        crc = (crc ^ data) & 1 ? (crc >> 1) ^ 0xa001 : crc >> 1;
    return crc;
}

static uint16_t list_work(uint16_t crc)
{
    static struct node nodes[32];
    struct node *head = NULL, *back = NULL;
    for (int i = 0; i < 32; i++) {
        nodes[i] = (struct node){ head, (int16_t)(i * 37 ^ crc) };
        head = &nodes[i];
    }
    for (struct node *next; head; head = next) {
        next = head->next;
        head->next = back;
        back = head;
    }
    int best = 0;
    for (; back; back = back->next)
        if (back->value > best)
            best = back->value;
    return crc16(crc, (uint16_t)best);
}

static uint16_t matrix_work(uint16_t crc)
{
    static int16_t a[8][8], b[8][8];
    int32_t sum = 0;
    for (int i = 0; i < 64; i++) {
        a[i / 8][i % 8] = (int16_t)(crc + i);
        b[i / 8][i % 8] = (int16_t)(crc ^ i);
    }
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++)
            for (int k = 0; k < 8; k++)
                sum += a[i][k] * b[k][j] >> 2 & 0x3ff;
    return crc16(crc, (uint16_t)sum);
}

static uint16_t state_work(uint16_t crc)
{
    static const char text[] = "5012,-1.25e3,+.7,x9,0xff,1e-4,abc,77,";
    enum { START, SIGN, INTEGER, FRACTION, EXPONENT, INVALID } state = START;
    uint16_t count[6] = { 0 };
    for (const char *c = text; *c; c++) {
        int digit = *c >= '0' && *c <= '9';
        switch (state) {
        case START: state = digit ? INTEGER : *c == '+' || *c == '-' ? SIGN : *c == '.' ? FRACTION : INVALID; break;
        case SIGN: state = digit ? INTEGER : *c == '.' ? FRACTION : INVALID; break;
        case INTEGER: state = digit ? INTEGER : *c == '.' ? FRACTION : *c == 'e' ? EXPONENT : INVALID; break;
        case FRACTION: state = digit ? FRACTION : *c == 'e' ? EXPONENT : INVALID; break;
        case EXPONENT: state = digit || *c == '-' ? EXPONENT : INVALID; break;
        case INVALID: break;
        }
        count[state]++;
        if (*c == ',')
            state = START;
    }
    for (int i = 0; i < 6; i++)
        crc = crc16(crc, count[i]);
    return crc;
}

static void controller(void)
{
    static uint16_t crc = 0x1d0f;
    crc = state_work(matrix_work(list_work(crc)));
    sink = crc;
}

// ---- one block of SHA-256 (FIPS 180-4, 6.2.2)

static uint32_t round_constants[64];

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes (4.2.2).
static void make_round_constants(void)
{
    for (int found = 0, n = 2; found < 64; n++) {
        int prime = 1;
        for (int d = 2; d * d <= n; d++)
            prime &= n % d != 0;
        if (!prime)
            continue;
        long double root = 1;
        for (int i = 0; i < 60; i++)
            root -= (root * root * root - n) / (3 * root * root);
        round_constants[found++] = (uint32_t)((root - (int)root) * 4294967296.0L);
    }
}

static uint32_t rotate(uint32_t x, int by)
{
    return x >> by | x << (32 - by);
}

static void sha256_block(void)
{
    static uint32_t state[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)i * 0x01010101u;
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    memcpy(v, state, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
        uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + round_constants[i] + w[i];
        uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
        uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        for (int j = 7; j > 0; j--)
            v[j] = v[j - 1];
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        state[i] += v[i];
    sink = state[0];
}

// ---- calls, indirect jumps, floating point, copies

static __attribute__((noinline, optimize("no-optimize-sibling-calls", "no-inline"))) int fib(int n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static void fib30(void)
{
    sink = (uint64_t)fib(30);
}

static void interpreter(void)
{
    static uint8_t program[65];
    static const void *labels[] = { &&add, &&shift, &&mix, &&sub, &&stop };
    if (program[64] == 0) {
        for (int i = 0; i < 64; i++)
            program[i] = (uint8_t)((i * 7 + i / 5) % 4);
        program[64] = 4;
    }
    uint64_t acc = sink;
    const uint8_t *pc = program;
#define NEXT goto *labels[*pc++]
    NEXT;
add:
    acc += 13;
    NEXT;
shift:
    acc = acc << 1 | acc >> 63;
    NEXT;
mix:
    acc ^= acc >> 7;
    NEXT;
sub:
    acc -= 5;
    NEXT;
stop:
    sink = acc;
}

static void matrix_product(void)
{
    static double a[32][32], b[32][32], c[32][32];
    if (a[0][0] == 0)
        for (int i = 0; i < 1024; i++) {
            a[i / 32][i % 32] = 1 + i * 0.5;
            b[i / 32][i % 32] = 2 - i * 0.25;
        }
    for (int i = 0; i < 32; i++) {
        double row[32] = { 0 };
        for (int k = 0; k < 32; k++)
            for (int j = 0; j < 32; j++)
                row[j] += a[i][k] * b[k][j];
        memcpy(c[i], row, sizeof row);
    }
    sink = (uint64_t)(int64_t)c[31][31];
}

static char *from, *to;

static void copy_library(void)
{
    memcpy(to, from, MIB);
    sink = (uint64_t)to[MIB - 1];
}

static void copy_string(void)
{
    void *d = to, *s = from;
    size_t n = MIB;
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
}

// ---- the kernel

static void system_call(void)
{
    sink = (uint64_t)syscall(SYS_getppid);
}

enum { FAULTS = 256 };

static void page_faults(void)
{
    char *pages = mmap(NULL, FAULTS * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        abort();
    madvise(pages, FAULTS * 4096, MADV_NOHUGEPAGE);
    for (int i = 0; i < FAULTS; i++)
        pages[i * 4096] = 1;
    munmap(pages, FAULTS * 4096);
}

static int there[2], back[2];

static void pipe_round_trip(void)
{
    char byte = 1;
    if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
        abort();
}

static pid_t echo_child(void)
{
    if (pipe(there) || pipe(back))
        abort();
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        close(there[1]);
        while (read(there[0], &byte, 1) == 1)
            if (write(back[1], &byte, 1) != 1)
                break;
        _exit(0);
    }
    return pid;
}

static void fork_exit(void)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    waitpid(pid, NULL, 0);
}

static void vfork_exec(void)
{
    pid_t pid = vfork();
    if (pid == 0) {
        execl(self, self, "nothing", (char *)NULL);
        _exit(127);
    }
    int status;
    if (waitpid(pid, &status, 0) != pid || status != 0)
        abort();
}

static double seconds_of(void (*test)(void), long times)
{
    double began = now();
    for (long i = 0; i < times; i++)
        test();
    return now() - began;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(const char *name, void (*test)(void), int each)
{
    double taken[ROUNDS];
    long times = 1;
    while ((taken[0] = seconds_of(test, times)) < ROUND_SECONDS / 4)
        times *= 4;
    times = (long)(times * ROUND_SECONDS / taken[0]) + 1;
    for (int round = 0; round < ROUNDS; round++)
        taken[round] = seconds_of(test, times) / times;
    qsort(taken, ROUNDS, sizeof *taken, compare);
    printf("ROW %s %.3f\n", name, taken[ROUNDS / 2] * 1e9 / each);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "nothing") == 0)
        return 0;
    self = argv[0];
    from = malloc(MIB);
    to = malloc(MIB);
    if (!from || !to)
        return 1;
    memset(from, 7, MIB);
    memset(to, 8, MIB);
    make_round_constants();
    measure("controller", controller, 1);
    measure("sha256", sha256_block, 1);
    measure("fib", fib30, 1);
    measure("interpreter", interpreter, 1);
    measure("matmul", matrix_product, 1);
    measure("memcpy", copy_library, 1);
    measure("movsb", copy_string, 1);
    measure("getppid", system_call, 1);
    measure("fault", page_faults, FAULTS);
    pid_t echo = echo_child();
    measure("pipe", pipe_round_trip, 1);
    close(there[1]);
    waitpid(echo, NULL, 0);
    measure("fork", fork_exit, 1);
    measure("exec", vfork_exec, 1);
    printf("DONE\n");
    fflush(stdout);
    while (getpid() == 1)
        pause();
    return 0;
}
