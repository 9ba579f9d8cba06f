//! A small disk for the data, in memory, that can be filled.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Several times what a round stores.
const SIZE: &str = "size=256m";

/// Unmounted when this is dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one at `place`, which is made.
    pub fn mount(place: &Path) -> Self {
        std::fs::create_dir_all(place).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "quayside-chaos"]).arg(place).status().unwrap();
        assert!(mounted.success(), "mounting a tmpfs on {}", place.display());
        Self(place.to_owned())
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).unwrap();
        let mut piece = 1 << 20;
        while piece > 0 {
            if file.write_all(&vec![0; piece]).is_err() {
                piece /= 16;
            }
        }
    }

    /// Gives it back.
    pub fn free(&self) {
        let _absent = std::fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.0.join("somebody-elses-file")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
