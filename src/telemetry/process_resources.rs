//! What the process uses, as clients of Prometheus tell it. For the admin address: files of `/proc` are read, though none that waits for a
//! disk. On other systems than Linux little is known.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

use crate::overload::sample::{Allowance, open_descriptors, resident_bytes};

/// What it uses now. `None`: not known, or no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Resources {
    /// Seconds of processor time, of the system's calls too.
    pub cpu_seconds: f64,
    /// Bytes of memory that are resident.
    pub resident_bytes: Option<u64>,
    /// Bytes of address space.
    pub virtual_bytes: Option<u64>,
    /// File descriptors that are open.
    pub open_descriptors: Option<u64>,
    /// Those that may be: the soft limit.
    pub max_descriptors: Option<u64>,
}

impl Resources {
    /// What the system says.
    pub fn now() -> Self {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            cpu_seconds: used.tv_sec as f64 + used.tv_nsec as f64 / 1e9,
            resident_bytes: resident_bytes(),
            virtual_bytes: fs::read_to_string("/proc/self/stat").ok().and_then(|stat| address_space(&stat)),
            open_descriptors: open_descriptors(),
            max_descriptors: Allowance::read().descriptors,
        }
    }
}

/// The 23rd field of `/proc/self/stat`. The second, a name in brackets, may have anything in it.
fn address_space(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(20)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_space_is_behind_the_name() {
        let stat =
            "17 (a) b) S 1 17 17 0 -1 4194560 1093 0 0 0 7 8 0 0 20 0 3 0 12345 98765432 2345 18446744073709551615 1";
        assert_eq!(address_space(stat), Some(98_765_432));
        assert_eq!(address_space("17 (a) S 1"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn all_is_known_of_this_process() {
        let Resources { cpu_seconds, resident_bytes, virtual_bytes, open_descriptors, max_descriptors: _ } =
            Resources::now();
        assert!(cpu_seconds > 0.0);
        assert!(resident_bytes.unwrap() > 1 << 20 && virtual_bytes > resident_bytes);
        assert!(open_descriptors.unwrap() > 2);
    }
}
