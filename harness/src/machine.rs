//! The machine that a run is made on. Figures of another kind of machine are another series.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Architecture and system: `x86_64-linux`.
    pub system: String,
    /// The processor's own name; empty where it has none to tell.
    pub cpu: String,
    pub cores: usize,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        Machine {
            system: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            cpu: cpu(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// `x86_64-linux, AMD EPYC 9B14, 2 cores`.
    pub fn kind(&self) -> String {
        let cpu = if self.cpu.is_empty() { String::new() } else { format!(" {},", self.cpu) };
        format!("{},{cpu} {}", self.system, crate::text::count(self.cores, "core"))
    }
}

/// Linux tells it in /proc/cpuinfo, under `model name` on most architectures.
fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu_in(&text)
}

fn cpu_in(cpuinfo: &str) -> String {
    let of = |key: &str| {
        let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let mut values =
            fields.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim());
        values.next().filter(|value| !value.is_empty()).map(String::from)
    };
    // Of ARM machines there is only the number of the part.
    of("model name").or_else(|| of("CPU part")).unwrap_or_default()
}

/// The most memory that a process has had so far, in bytes; none where the system doesn't tell.
pub fn peak_memory(process: i32) -> Option<u64> {
    bytes_in(&format!("/proc/{process}/status"), "VmHWM:")
}

/// Memory that can be had without swapping, in bytes; none where the system doesn't tell.
pub fn available_memory() -> Option<u64> {
    bytes_in("/proc/meminfo", "MemAvailable:")
}

/// What stands in kB behind `key`.
fn bytes_in(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named_where_it_tells_its_name() {
        let of =
            |cpu: &str| Machine { system: "x86_64-linux".into(), cpu: cpu.into(), cores: 2 }.kind();
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags : a\n";
        assert_eq!(of(&cpu_in(text)), "x86_64-linux, AMD EPYC 9B14, 2 cores");
        assert_eq!(cpu_in("CPU implementer : 0x41\nCPU part : 0xd0c\n"), "0xd0c");
        assert_eq!(of(&cpu_in("")), "x86_64-linux, 2 cores");
    }
}
