//! Process groups: who is alive, how a whole group is ended, and how what left it is found.
//!
//! Every child leads a group of its own and carries a mark in its environment that all of its
//! descendants inherit. The group is ended by one signal. On Linux the harness is also the
//! subreaper of its descendants: what left the group (`setsid`, a double fork) becomes our child
//! when its parent ends, and is recognised by the mark. Children of the same program that don't
//! carry a mark are never touched.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

use rustix::process::{self, Pid, Signal, WaitOptions};

/// The environment variable that holds the mark.
const MARK: &str = "LLORCH_SESSION";

/// One child's process group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    leader: Pid,
    mark: String,
    /// Whether descendants that left the group are ended with it. True for adapters. False for
    /// tools: a compiler cache that a build starts in the background belongs to the user.
    sweeps: bool,
}

/// All groups that are alive, and whether new ones may still be made.
struct Registry {
    groups: Vec<Group>,
    closed: bool,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { groups: Vec::new(), closed: false });
static NEXT_MARK: AtomicU64 = AtomicU64::new(0);
static SUBREAPER: Once = Once::new();

fn registry() -> MutexGuard<'static, Registry> {
    // A panic while the lock was held can't leave a list of numbers half-changed.
    REGISTRY.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A mark that no other child has, as (variable, value).
pub(crate) fn new_mark() -> (String, String) {
    let number = NEXT_MARK.fetch_add(1, Ordering::Relaxed);
    (MARK.to_owned(), format!("{}-{number}", std::process::id()))
}

/// Starts a child by `spawn` (which returns its process id) and registers its group. The lock is
/// held throughout, so an interrupt either sees the group or prevents the start.
pub(crate) fn start<T>(
    mark: &str,
    sweeps: bool,
    spawn: impl FnOnce() -> io::Result<(T, u32)>,
) -> io::Result<(T, Group)> {
    SUBREAPER.call_once(become_subreaper);
    let mut registry = registry();
    if registry.closed {
        drop(registry); // the handler needs it
        super::interrupt::await_exit();
        return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
    }
    let (child, pid) = spawn()?;
    let leader = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let leader =
        leader.ok_or_else(|| io::Error::other(format!("process id {pid} is out of range")))?;
    let group = Group { leader, mark: mark.to_owned(), sweeps };
    registry.groups.push(group.clone());
    Ok((child, group))
}

/// No group may be started any more; returns those that are alive.
pub(crate) fn close() -> Vec<Group> {
    let mut registry = registry();
    registry.closed = true;
    registry.groups.clone()
}

/// The leaders of all groups that are alive now.
pub fn live_groups() -> Vec<i32> {
    registry().groups.iter().map(|group| group.leader.as_raw_nonzero().get()).collect()
}

/// Whether no process is left in the group of this leader.
pub fn group_is_empty(leader: i32) -> bool {
    Pid::from_raw(leader)
        .is_none_or(|pid| process::test_kill_process_group(pid) == Err(rustix::io::Errno::SRCH))
}

impl Group {
    pub(crate) fn leader(&self) -> i32 {
        self.leader.as_raw_nonzero().get()
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // The only error that can come of this is that nobody is left, which is what we want.
        let _ = process::kill_process_group(self.leader, signal);
    }

    /// Ends what the leader left behind and forgets the group. Call after the leader was waited
    /// for. Returns how many processes had to be killed.
    pub(crate) fn clear(&self) -> usize {
        let mut killed = self.kill_members();
        if self.sweeps {
            killed += self.sweep();
        }
        self.forget();
        killed
    }

    /// Waits for what the leader started to end by itself: some helpers notice its end a moment later.
    pub(crate) fn settle(&self, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            self.reap();
            if group_is_empty(self.leader()) || Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes the group off the list without touching it.
    pub(crate) fn forget(&self) {
        registry().groups.retain(|group| group != self);
    }

    /// Kills what is left in the group; waits until it is gone.
    fn kill_members(&self) -> usize {
        let mut killed = 0;
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            self.reap();
            if group_is_empty(self.leader()) {
                return killed;
            }
            // Killing more than once is no more killing: count the first time.
            if killed == 0 {
                killed = proc_table::members(self.leader()).max(1);
            }
            self.kill();
            if Instant::now() > deadline {
                return killed; // stuck in the kernel; nothing more can be done
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Collects dead members of this group that became our children.
    fn reap(&self) {
        while let Ok(Some(_)) = process::waitpgid(self.leader, WaitOptions::NOHANG) {}
    }

    /// Kills descendants that left the group. Each round may bring up the children of those that
    /// the last one killed.
    fn sweep(&self) -> usize {
        let mut killed = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let orphans = proc_table::orphans(&format!("{MARK}={}", self.mark));
            if orphans.is_empty() || Instant::now() > deadline {
                return killed.len();
            }
            for pid in orphans {
                let _ = process::kill_process(pid, Signal::KILL);
                let _ = process::waitpid(Some(pid), WaitOptions::NOHANG);
                if !killed.contains(&pid) {
                    killed.push(pid);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn become_subreaper() {
    #[cfg(target_os = "linux")]
    // Without it (an old kernel, a sandbox) what leaves its group survives; the rest still works.
    let _ = process::set_child_subreaper(Some(process::getpid()));
}

/// What `/proc` says of processes. Empty where there is none.
mod proc_table {
    use rustix::process::{self, Pid};

    struct Entry {
        pid: Pid,
        state: char,
        parent: i32,
        group: i32,
    }

    /// How many living processes are in a group.
    pub(super) fn members(leader: i32) -> usize {
        entries().filter(|entry| entry.group == leader && entry.state != 'Z').count()
    }

    /// Our own children that carry this mark. Those that lead a registered group carry another.
    pub(super) fn orphans(mark: &str) -> Vec<Pid> {
        let me = process::getpid().as_raw_nonzero().get();
        entries()
            .filter(|entry| entry.parent == me && entry.state != 'Z')
            .filter(|entry| has_environment(entry.pid, mark))
            .map(|entry| entry.pid)
            .collect()
    }

    fn entries() -> impl Iterator<Item = Entry> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        processes.filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?))
    }

    /// `pid (name) state parent group ...`; the name may hold spaces and brackets.
    fn read(pid: i32) -> Option<Entry> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        Some(Entry {
            pid: Pid::from_raw(pid)?,
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
        })
    }

    fn has_environment(pid: Pid, entry: &str) -> bool {
        let path = format!("/proc/{}/environ", pid.as_raw_nonzero());
        std::fs::read(path)
            .is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|item| item == entry.as_bytes()))
    }
}
