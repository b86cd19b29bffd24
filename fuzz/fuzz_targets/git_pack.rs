//! A pack of git's and its index, as they are and with checksums that match.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use git_devops::git::fuzz_pack;
use libfuzzer_sys::fuzz_target;
use sha1dc::Hasher;

/// Where the files are written: in memory, where there is such a place.
static GIT_DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let above = Some(PathBuf::from("/dev/shm")).filter(|dir| dir.is_dir()).unwrap_or_else(std::env::temp_dir);
    // One at a time is run.
    let dir = above.join("git-devops-fuzz");
    std::fs::create_dir_all(dir.join("objects/pack")).expect("there is room for a few small files");
    dir
});

/// Puts the checksum of all before it at the end.
fn seal(bytes: &mut [u8]) -> Option<[u8; 20]> {
    let at = bytes.len().checked_sub(20)?;
    let mut hasher = Hasher::new();
    hasher.update(&bytes[..at]);
    let sum: [u8; 20] = hasher.finalize().ok()?.into();
    bytes[at..].copy_from_slice(&sum);
    Some(sum)
}

fuzz_target!(|data: &[u8]| {
    // The length of the pack, the pack, its index.
    let Some((length, rest)) = data.split_first_chunk() else { return };
    let Some((pack, index)) = rest.split_at_checked(u16::from_le_bytes(*length).into()) else { return };
    fuzz_pack(&GIT_DIR, pack, index);
    let (mut pack, mut index) = (pack.to_vec(), index.to_vec());
    if let (Some(sum), Some(at)) = (seal(&mut pack), index.len().checked_sub(40)) {
        index[at..at + 20].copy_from_slice(&sum);
        seal(&mut index);
        fuzz_pack(&GIT_DIR, &pack, &index);
    }
});
