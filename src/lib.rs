//! GPT-2 on the CPU.
