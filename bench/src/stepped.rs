//! A wall clock of one process that can be stepped: libfaketime in front of the C library. The monotonic clock stays.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where Debian's package `libfaketime` puts the library.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// See the module.
#[derive(Debug)]
pub(crate) struct SteppedClock {
    library: &'static str,
    /// What the library adds to the time; it looks there once a second.
    offset: PathBuf,
}

impl SteppedClock {
    /// One that is right until it is stepped. Its file lies in `folder`.
    ///
    /// # Errors
    /// A sentence, where the library is not installed.
    pub(crate) fn new(folder: &Path) -> Result<Self, String> {
        let library = LIBRARIES.into_iter().find(|library| Path::new(library).exists());
        let library = library.ok_or("libfaketime is not installed")?;
        let clock = Self { library, offset: folder.join("clock-offset") };
        clock.step(0).map_err(|error| format!("the clock's offset cannot be written: {error}"))?;
        Ok(clock)
    }

    /// For the process that is to have this clock.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", self.library.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.offset.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// From the next second on the clock is `seconds` ahead, or behind.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn step(&self, seconds: i64) -> io::Result<()> {
        // Never half a number.
        let next = self.offset.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n"))?;
        fs::rename(&next, &self.offset)
    }
}

/// Removes what the library of a killed process left in shared memory.
pub(crate) fn clean_up_after(pid: u32) {
    for name in ["faketime_shm", "sem.faketime_sem"] {
        // Not there: it ended in order, or was killed too early.
        let _ = fs::remove_file(format!("/dev/shm/{name}_{pid}"));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::clock;

    #[test]
    fn a_process_sees_its_clock_ahead_and_behind() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(stepped) = SteppedClock::new(folder.path()) else { return };
        for step in [0, 3_600, -3_600] {
            stepped.step(step).unwrap();
            let date =
                Command::new("date").arg("+%s").envs(stepped.environment()).output().unwrap();
            let seen: i64 = String::from_utf8_lossy(&date.stdout).trim().parse().unwrap();
            let now = clock::wall().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
            assert!((seen - now - step).abs() <= 5, "{step}: {seen} at {now}");
        }
    }
}
