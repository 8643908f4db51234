//! Files that become shorter while they are read out of a memory map: the system then ends whoever reads on with SIGBUS.
//! Such a program should at least say why, and end as it does whenever a file can't be read.

/// What `llorch-diff` ends with: the environment.
pub const EXIT_CODE: i32 = 3;

const MESSAGE: &[u8] =
    b"error: a file became shorter while it was being read; compare again when nobody writes to it\n";

/// From now on such a read ends the program with that sentence and exit code 3.
pub fn tell() {
    #[cfg(unix)]
    {
        let last_words = || {
            // There is nobody left to tell that it can't be told.
            let _ = rustix::io::write(rustix::stdio::stderr(), MESSAGE);
            signal_hook::low_level::exit(EXIT_CODE);
        };
        // SAFETY: what the handler does, a write and an exit by system calls, is allowed in a signal handler.
        let registered =
            unsafe { signal_hook::low_level::register(signal_hook::consts::SIGBUS, last_words) };
        // Where it isn't taken, the program ends without a word, as it would have.
        drop(registered);
    }
}
