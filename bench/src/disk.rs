//! A disk of limited size for one router, which can be filled and freed: a tmpfs.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

/// Above what a router keeps free by itself and what its log takes at once.
const DISK_BYTES: u64 = 512 << 20;
/// A router that writes meanwhile may be in the way so often.
const FILL_TRIES_MAX: u32 = 8;
/// What is left free when a disk is filled until the router has to see it coming.
pub(crate) const NEARLY_FULL_BYTES: u64 = 16 << 20;

/// See the module. It goes when this is dropped; nobody may use it then.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts it at `folder`, which is made.
    ///
    /// # Errors
    /// A sentence, where that is not allowed.
    pub(crate) fn mount(folder: PathBuf) -> Result<Self, String> {
        let refused = |said: &dyn std::fmt::Display| format!("a tmpfs cannot be mounted: {said}");
        fs::create_dir_all(&folder).map_err(|error| refused(&error))?;
        let options = format!("size={DISK_BYTES}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "hawser-bench"]).arg(&folder);
        let output = mount.output().map_err(|error| refused(&error))?;
        if !output.status.success() {
            return Err(refused(&String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(Self { folder })
    }

    /// Where its files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes all that is free but `left` bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn fill(&self, left: u64) -> io::Result<()> {
        let filler = File::options().create(true).append(true).open(self.filler())?;
        for _ in 0..FILL_TRIES_MAX {
            let state = statvfs(&self.folder)?;
            let taken = (state.f_bavail * state.f_frsize).saturating_sub(left);
            let length = filler.metadata()?.len();
            if taken == 0 {
                return Ok(());
            }
            match fallocate(&filler, FallocateFlags::empty(), length, taken) {
                // The router was faster, and has taken some of it.
                Err(Errno::NOSPC) => {}
                other => return Ok(other?),
            }
        }
        Ok(())
    }

    /// Gives back what [`fill`](Self::fill) took.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(crate) fn free(&self) -> io::Result<()> {
        fs::remove_file(self.filler())
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.folder).output();
        if !unmounted.is_ok_and(|output| output.status.success()) {
            eprintln!("{} is still mounted", self.folder.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_full_disk_takes_nothing_until_it_is_freed() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(disk) = Disk::mount(folder.path().join("disk")) else { return };
        let mut file = File::create(disk.folder().join("data")).unwrap();
        disk.fill(0).unwrap();
        let full = file.write_all(&[1; 8192]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        disk.free().unwrap();
        file.write_all(&[1; 8192]).unwrap();
    }
}
