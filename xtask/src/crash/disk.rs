//! A small filesystem in a file: mounted, cut off from power, and put back into a state that it had before.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{Context, Result, run, succeed};

use super::trace;

/// A kind of filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4, without the heuristic that hides a missing fsync before a rename.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs, of which the power can't be cut.
    Btrfs,
}

impl Kind {
    /// All of them, with their names.
    pub const ALL: &[(&str, Kind)] = &[("ext4", Kind::Ext4), ("xfs", Kind::Xfs), ("btrfs", Kind::Btrfs)];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).expect("BUG: a kind without a name").0
    }

    /// Says whether the kernel can cut its power.
    pub fn can_be_cut(self) -> bool {
        self != Kind::Btrfs
    }

    /// The smallest that its mkfs makes, with room for the work.
    fn size(self) -> u64 {
        match self {
            Kind::Ext4 => 96 << 20,
            Kind::Xfs => 300 << 20,
            Kind::Btrfs => 256 << 20,
        }
    }

    fn make(self, image: &Path) -> Result {
        let (program, options): (_, &[&str]) = match self {
            Kind::Ext4 => ("mkfs.ext4", &["-q", "-F", "-m", "0", "-J", "size=8", "-E", "lazy_itable_init=0,lazy_journal_init=0"]),
            Kind::Xfs => ("mkfs.xfs", &["-q", "-f"]),
            Kind::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
        };
        succeed(Command::new(program).args(options).arg(image)).map(drop)
    }

    fn mount_options(self) -> &'static str {
        match self {
            Kind::Ext4 => "loop,noauto_da_alloc",
            // Copies of one image are mounted beside each other.
            Kind::Xfs => "loop,nouuid",
            // So are these; the kernel gives each an identity of its own.
            Kind::Btrfs => "loop",
        }
    }
}

/// All bytes of a filesystem at one moment.
pub struct State {
    blocks: Vec<(u64, Vec<u8>)>,
}

/// A filesystem in a file, which is unmounted when dropped.
pub struct Disk {
    kind: Kind,
    image: PathBuf,
    at: PathBuf,
    is_mounted: bool,
}

const BLOCK: usize = 64 << 10;

impl Disk {
    /// Makes an empty filesystem, to be mounted at `dir/NAME`.
    pub fn new(kind: Kind, dir: &Path, name: &str) -> Result<Disk> {
        let disk = Disk { kind, image: dir.join(format!("{name}.image")), at: dir.join(name), is_mounted: false };
        disk.clear()?;
        File::create(&disk.image)?.set_len(kind.size())?;
        kind.make(&disk.image)?;
        Ok(disk)
    }

    /// Makes a filesystem in a known state, to be mounted at `dir/NAME`.
    pub fn with(kind: Kind, dir: &Path, name: &str, state: &State) -> Result<Disk> {
        let mut disk = Disk { kind, image: dir.join(format!("{name}.image")), at: dir.join(name), is_mounted: false };
        disk.clear()?;
        disk.set(state)?;
        Ok(disk)
    }

    /// Clears away what a sweep that was killed left: its mounts, and an image that a loop device may still hold.
    fn clear(&self) -> Result {
        std::fs::create_dir_all(&self.at)?;
        while rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH).is_ok() {}
        match std::fs::remove_file(&self.image) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Mounts it.
    pub fn mount(&mut self) -> Result {
        let mut mount = Command::new("mount");
        succeed(mount.args(["-t", self.kind.name(), "-o", self.kind.mount_options()]).arg(&self.image).arg(&self.at))?;
        self.is_mounted = true;
        Ok(())
    }

    /// Unmounts it; a program that was killed may need a moment to let go of it.
    pub fn unmount(&mut self) -> Result {
        for attempt in 0.. {
            match rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) if attempt < 200 => std::thread::sleep(Duration::from_millis(10)),
                other => {
                    other.context(|| format!("cannot unmount '{}'", self.at.display()))?;
                    break;
                }
            }
        }
        self.is_mounted = false;
        Ok(())
    }

    /// Cuts its power, perhaps after its journal was committed for the sake of a foreign file.
    pub fn cut(&self, is_journal_committed: bool) -> Result {
        let top = File::open(&self.at)?;
        if is_journal_committed {
            let foreign = self.at.join(FOREIGN);
            let file = OpenOptions::new().create(true).append(true).open(&foreign)?;
            (&file).write_all(b"somebody else's line\n")?;
            file.sync_all()?;
        }
        trace::cut_power(top.as_fd())
    }

    /// Reads all of it; it must not be mounted.
    pub fn state(&self) -> Result<State> {
        let mut image = File::open(&self.image)?;
        let (mut at, mut blocks, mut block) = (0, Vec::new(), vec![0; BLOCK]);
        loop {
            let len = image.read(&mut block)?;
            if len == 0 {
                return Ok(State { blocks });
            }
            if block[..len].iter().any(|&byte| byte != 0) {
                blocks.push((at, block[..len].to_vec()));
            }
            at += len as u64;
        }
    }

    /// Makes sure that it is mounted next from what is in its file, and from nothing else; it must not be mounted.
    pub fn forget_caches(&mut self) -> Result {
        let state = self.state()?;
        self.set(&state)
    }

    /// Puts it into a state; it must not be mounted.
    ///
    /// The file is a new one each time: somebody else who looks at all loop devices may still hold the one of the old file open, with blocks of it in
    /// its cache, and a mount of the same file would use that device again.
    pub fn set(&mut self, state: &State) -> Result {
        if self.image.exists() {
            std::fs::remove_file(&self.image)?;
        }
        let image = File::create_new(&self.image)?;
        image.set_len(self.kind.size())?;
        for (at, block) in &state.blocks {
            image.write_all_at(block, *at)?;
        }
        Ok(())
    }
}

/// Lies at the top of every filesystem, so that a journal commit does not make a new name.
pub const FOREIGN: &str = "foreign";

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = run(Command::new("umount").arg(OsStr::new("-l")).arg(&self.at));
        }
        let _ = std::fs::remove_file(&self.image);
    }
}
