//! Pure compiler from a system call policy to a classic BPF program
