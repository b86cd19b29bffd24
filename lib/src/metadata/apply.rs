//! Gives a file, directory or node the metadata that was recorded.
//!
//! The order matters: the kernel takes setuid and capabilities away when the owner changes, and an access ACL and
//! the mode share the group's bits. So: owner, mode, attributes, capabilities, times. Inode flags come last and apart,
//! after the file has its final name, because they may forbid all of that.
//!
//! What the target already has is not set again, so that a live file is never without its setuid bit for a moment
//! only because its time was wrong.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::inode::{Inode, flags, is_foreign, is_unsupported, set_flags};
use super::{Flags, KERNEL_LABELS, Metadata, shown};
use crate::error::{Context, Error, Kind, Result};
use crate::safepath::{Dir, FileKind, Stat};

const CAPABILITY: &[u8] = b"security.capability";
const SETUID: u16 = 0o4000;
const SETGID: u16 = 0o2000;

/// Gives an open file or directory the owner `ids` (user, group) and mode, attributes and time of `metadata`.
///
/// Returns a line for each thing that could not be set because the filesystem has no such thing or because we are not
/// privileged; any other failure is an error. If the owner could not be set, setuid and setgid are left out too: they
/// would lend the rights of somebody else.
pub fn apply_to_file(fd: impl AsFd, metadata: &Metadata, ids: (u32, u32)) -> Result<Vec<String>> {
    Applying::to(Inode::open(fd.as_fd()), metadata)?.run(metadata, ids)
}

/// Does the same to the entry `name` of `dir` itself: a symlink or a node.
pub fn apply_to_entry(dir: &Dir, name: &[u8], metadata: &Metadata, ids: (u32, u32)) -> Result<Vec<String>> {
    let handle = dir.open_handle(name)?;
    Applying::to(Inode::handle(handle.as_fd()), metadata)?.run(metadata, ids)
}

/// Sets exactly `wanted` of the inode flags that a person can set, on an open file or directory that is finished.
///
/// Returns a line for each flag that could not be set or cleared. `casefold` needs an empty directory, and `nocow` an
/// empty file: see [`apply_flags_before_content`].
pub fn apply_flags(fd: impl AsFd, wanted: Flags) -> Result<Vec<String>> {
    set_as_many_as_possible(&fd, wanted)?;
    let have = flags(&fd).context(|| "cannot read inode flags")?;
    let missing = wanted.without(have).iter().map(|(name, _)| format!("flag '{name}' could not be set"));
    let surplus = have.without(wanted).iter().map(|(name, _)| format!("flag '{name}' could not be cleared"));
    Ok(missing.chain(surplus).collect())
}

/// Sets those of `wanted` that only an empty file or directory takes; [`apply_flags`] tells later what did not hold.
pub fn apply_flags_before_content(fd: impl AsFd, wanted: Flags) -> Result<()> {
    let have = flags(&fd).context(|| "cannot read inode flags")?;
    let early = Flags::BEFORE_CONTENT;
    let wanted = have.without(early) | wanted.and(early);
    if wanted == have { Ok(()) } else { set_as_many_as_possible(fd, wanted) }
}

/// Takes away what forbids to replace or change an open file or directory, and returns what that was.
pub fn clear_flags(fd: impl AsFd) -> Result<Flags> {
    let had = flags(&fd).context(|| "cannot read inode flags")?;
    set_flags(fd, had.without(Flags::LOCKING)).context(|| "cannot clear the flags 'immutable' and 'append'")?;
    Ok(had.and(Flags::LOCKING))
}

/// Returns what forbids to replace or change an open file or directory.
pub fn locking_flags(fd: impl AsFd) -> Result<Flags> {
    Ok(flags(fd).context(|| "cannot read inode flags")?.and(Flags::LOCKING))
}

/// Sets `wanted` beside the flags that an open file or directory has.
pub fn add_flags(fd: impl AsFd, wanted: Flags) -> Result<()> {
    let have = flags(&fd).context(|| "cannot read inode flags")?;
    set_flags(fd, have | wanted).context(|| "cannot set inode flags")
}

fn set_as_many_as_possible(fd: impl AsFd, wanted: Flags) -> Result<()> {
    let what = || "cannot set inode flags";
    if !is_flag_refused(set_flags(&fd, wanted)).context(what)? {
        return Ok(());
    }
    // One of them is refused: the rest one by one, first what has to go, and what forbids all others at the end.
    let have = flags(&fd).context(what)?;
    let off = have.without(wanted).iter().map(|(_, flag)| (flag, false));
    let on = wanted.without(have | Flags::LOCKING).iter().map(|(_, flag)| (flag, true));
    let locking = wanted.and(Flags::LOCKING).iter().map(|(_, flag)| (flag, true));
    for (flag, is_wanted) in off.chain(on).chain(locking) {
        let now = flags(&fd).context(what)?;
        is_flag_refused(set_flags(&fd, if is_wanted { now | flag } else { now.without(flag) })).context(what)?;
    }
    Ok(())
}

/// Tells a flag that this filesystem, this file or our rights do not allow from a real failure.
fn is_flag_refused(result: rustix::io::Result<()>) -> rustix::io::Result<bool> {
    match result {
        Ok(()) => Ok(false),
        Err(Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::NOTEMPTY) => Ok(true),
        Err(errno) if is_unsupported(errno) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// One inode, how it is by now, and what could not be set on it.
struct Applying<'a> {
    inode: Inode<'a>,
    have: Stat,
    skipped: Vec<String>,
}

impl<'a> Applying<'a> {
    fn to(inode: Inode<'a>, wanted: &Metadata) -> Result<Self> {
        let have = inode.stat()?;
        if have.kind != wanted.kind {
            return Err(Error::new(Kind::Refused, "the type is not the recorded one (it changed while it was looked at)"));
        }
        Ok(Self { inode, have, skipped: Vec::new() })
    }

    fn run(mut self, wanted: &Metadata, ids: (u32, u32)) -> Result<Vec<String>> {
        self.set_owner(ids)?;
        let mode = self.lendable(wanted.mode, ids);
        let has_mode = wanted.kind != FileKind::Symlink && self.set_mode(mode)?;
        self.set_xattrs(wanted)?;
        if has_mode {
            self.keep_mode(mode)?;
        }
        self.set_mtime(wanted)?;
        Ok(self.skipped)
    }

    /// Looks again: what was set takes other things away.
    fn look(&mut self) -> Result<()> {
        self.have = self.inode.stat()?;
        Ok(())
    }

    fn set_owner(&mut self, ids: (u32, u32)) -> Result<()> {
        if (self.have.uid, self.have.gid) == ids {
            return Ok(());
        }
        self.change_owner(ids)?;
        self.look()
    }

    fn change_owner(&mut self, (uid, gid): (u32, u32)) -> Result<()> {
        let (has_uid, has_gid) = (self.have.uid == uid, self.have.gid == gid);
        let done = self.inode.set_owner(uid, gid);
        if done == Err(Errno::PERM) && !is_privileged() {
            // The owner of a file may still give it to another of his groups.
            self.skip_or_fail(|| format!("owner {uid}"), if has_uid { Ok(()) } else { done })?;
            let done = if has_gid { Ok(()) } else { self.inode.set_owner(self.have.uid, gid) };
            return self.skip_or_fail(|| format!("group {gid}"), done);
        }
        self.skip_or_fail(|| format!("owner {uid}:{gid}"), done)
    }

    /// Returns `mode` without the setuid and setgid bits that would lend the rights of somebody else.
    fn lendable(&mut self, mode: u16, (uid, gid): (u32, u32)) -> u16 {
        let mut lendable = mode;
        if self.have.uid != uid {
            lendable &= !SETUID;
        }
        if self.have.gid != gid {
            lendable &= !SETGID;
        }
        if lendable != mode {
            self.skipped.push("setuid or setgid left out, because the owner could not be set".to_owned());
        }
        lendable
    }

    /// Sets the mode, and says whether that could be done.
    fn set_mode(&mut self, mode: u16) -> Result<bool> {
        if self.have.mode == mode {
            return Ok(true);
        }
        let done = self.inode.set_mode(mode);
        self.skip_or_fail(|| format!("mode {mode:04o}"), done)?;
        self.look()?;
        Ok(done.is_ok())
    }

    /// Sets the mode once more where an access ACL brought group bits of its own: the mode has the last word.
    fn keep_mode(&mut self, mode: u16) -> Result<()> {
        if self.have.mode == mode {
            return Ok(());
        }
        self.inode.set_mode(mode).context(|| format!("cannot set mode {mode:04o}"))?;
        self.look()?;
        let have = self.have.mode;
        if have != mode {
            // As with setgid for a group that is not ours.
            self.skipped.push(format!("mode {mode:04o}: the kernel left it at {have:04o}"));
        }
        Ok(())
    }

    fn set_xattrs(&mut self, wanted: &Metadata) -> Result<()> {
        let have = self.inode.xattrs().context(|| "cannot read extended attributes")?;
        for (name, _) in have.iter().filter(|(name, _)| wanted.xattr(name).is_none() && !KERNEL_LABELS.contains(&&**name)) {
            let done = self.inode.remove_xattr(name);
            self.skip_or_fail_xattr(name, done)?;
            self.look()?;
        }
        let (capability, others): (Vec<_>, Vec<_>) =
            wanted.xattrs.iter().filter(|(name, _)| !is_foreign(name)).partition(|(name, _)| name == CAPABILITY);
        for wanted in others.into_iter().chain(capability).filter(|wanted| !have.contains(wanted)) {
            let (name, value) = wanted;
            let done = self.inode.set_xattr(name, value);
            self.skip_or_fail_xattr(name, done)?;
            self.look()?;
        }
        Ok(())
    }

    fn set_mtime(&mut self, wanted: &Metadata) -> Result<()> {
        match wanted.mtime {
            Some(mtime) if self.have.mtime != mtime => {
                let done = self.inode.set_mtime(mtime);
                self.skip_or_fail(|| "modification time".to_owned(), done)
            }
            _ => Ok(()),
        }
    }

    fn skip_or_fail_xattr(&mut self, name: &[u8], done: rustix::io::Result<()>) -> Result<()> {
        let what = || format!("attribute '{}'", shown(name));
        // Root in a container may own everything and still not set these.
        let needs_more_than_root = name.starts_with(b"security.") || name.starts_with(b"trusted.");
        match done {
            Err(Errno::PERM) if needs_more_than_root => {
                self.skipped.push(format!("{}: {}", what(), Error::from(Errno::PERM)));
                Ok(())
            }
            done => self.skip_or_fail(what, done),
        }
    }

    /// Notes what the filesystem or our rights do not allow; every other failure is the caller's.
    fn skip_or_fail(&mut self, what: impl Fn() -> String, done: rustix::io::Result<()>) -> Result<()> {
        match done {
            Err(errno) if is_unsupported(errno) || (is_denied(errno) && !is_privileged()) => {
                self.skipped.push(format!("{}: {}", what(), Error::from(errno)));
                Ok(())
            }
            done => done.context(|| format!("cannot set {}", what())),
        }
    }
}

fn is_denied(errno: Errno) -> bool {
    matches!(errno, Errno::PERM | Errno::ACCESS)
}

fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::super::{DirMetadata, Names, differences, of_entry, of_file};
    use super::*;
    use crate::safepath::{Time, stat_fd};
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    /// Says what stays untested for an ordinary user; the whole of it needs root.
    fn is_root() -> bool {
        if !is_privileged() {
            eprintln!("not root: owner, setuid, capabilities, trusted attributes, devices and locking flags are NOT covered");
        }
        is_privileged()
    }

    /// A scratch directory on a disk; its locking flags are cleared before it is removed.
    struct Scratch {
        temp: tempfile::TempDir,
        dir: Dir,
        names: Names,
    }

    impl Scratch {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let dir = Dir::open(temp.path()).unwrap();
            Self { temp, dir, names: Names::parse(b"alice:x:1234:1234::/:\n", b"staff:x:50:\n") }
        }

        fn file(&self) -> File {
            self.dir.create_temp().unwrap().1
        }

        fn capture(&self, fd: impl AsFd) -> Metadata {
            of_file(&fd, &stat_fd(&fd).unwrap(), &self.names).unwrap()
        }

        fn capture_entry(&self, name: &[u8]) -> Metadata {
            of_entry(&self.dir, name, &self.dir.stat(name).unwrap().unwrap(), &self.names).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            for entry in std::fs::read_dir(self.temp.path()).unwrap().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_file() || kind.is_dir()) {
                    let _ = File::open(entry.path()).map(clear_flags);
                }
            }
        }
    }

    fn through_the_text(metadata: &Metadata) -> Metadata {
        let mut dir = DirMetadata::new();
        if metadata.kind == FileKind::Dir {
            dir.dir = metadata.clone();
        } else {
            dir.entries.insert(b"x".to_vec(), metadata.clone());
        }
        let mut read = DirMetadata::decode(&dir.encode()).unwrap();
        let mut read = if metadata.kind == FileKind::Dir { read.dir } else { read.entries.remove(&b"x"[..]).unwrap() };
        if metadata.kind == FileKind::Symlink {
            read = read.held_by_git(super::super::GitKind::Symlink).unwrap();
        }
        assert_eq!(read, *metadata);
        read
    }

    fn xattr(name: &str, value: &[u8]) -> (Vec<u8>, Vec<u8>) {
        (name.into(), value.to_vec())
    }

    /// Returns an access ACL: owner rwx, user 1234 with `user`, group with `group`, `mask`, others nothing.
    fn acl(user: u8, group: u8, mask: u8) -> Vec<u8> {
        let nobody = u32::MAX;
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, perm, id) in [(1, 7, nobody), (2, user, 1234), (4, group, nobody), (0x10, mask, nobody), (0x20, 0, nobody)] {
            bytes.extend_from_slice(&u16::to_le_bytes(tag));
            bytes.extend_from_slice(&u16::from(perm).to_le_bytes());
            bytes.extend_from_slice(&u32::to_le_bytes(id));
        }
        bytes
    }

    /// Returns `cap_net_raw=ep`, as `setcap` writes it.
    fn capability() -> Vec<u8> {
        let mut bytes = vec![0; 20];
        bytes[..8].copy_from_slice(&[1, 0, 0, 2, 0, 0x20, 0, 0]);
        bytes
    }

    fn alices() -> Metadata {
        Metadata {
            mode: 0o6750,
            user: Some(b"alice".into()),
            uid: 1234,
            group: Some(b"staff".into()),
            gid: 50,
            mtime: Some(Time { secs: -86_400, nanos: 123_456_789 }),
            ..Metadata::new(FileKind::File)
        }
    }

    #[test]
    fn a_file_comes_back_with_everything() {
        if !is_root() {
            return;
        }
        let scratch = Scratch::new();
        let wanted = Metadata {
            xattrs: vec![
                xattr("security.capability", &capability()),
                xattr("system.posix_acl_access", &acl(6, 4, 5)),
                xattr("trusted.gdo", b"\0binary\xff"),
                xattr("user.empty", b""),
                xattr("user.long", &[b'x'; 3000]),
            ],
            flags: Flags::IMMUTABLE | Flags::named("nodump").unwrap() | Flags::named("noatime").unwrap(),
            ..alices()
        };
        let first = scratch.file();
        assert_eq!(apply_to_file(&first, &wanted, (1234, 50)).unwrap(), [""; 0]);
        assert_eq!(apply_flags(&first, wanted.flags).unwrap(), [""; 0]);
        let seen = scratch.capture(&first);
        assert_eq!(seen, wanted); // so nothing here is only what we ourselves think

        let second = scratch.file();
        let read = through_the_text(&seen);
        apply_to_file(&second, &read, (1234, 50)).unwrap();
        apply_flags(&second, read.flags).unwrap();
        assert_eq!(scratch.capture(&second), wanted);
        assert_eq!(differences(&wanted, &scratch.capture(&second)), [""; 0]);
        assert_eq!(second.metadata().unwrap().mtime_nsec(), 123_456_789);
        assert_eq!(second.metadata().unwrap().mtime(), -86_400);
    }

    #[test]
    fn a_directory_comes_back_with_its_default_acl() {
        if !is_root() {
            return;
        }
        let scratch = Scratch::new();
        let wanted = Metadata {
            mode: 0o3775,
            xattrs: vec![xattr("system.posix_acl_default", &acl(7, 5, 7)), xattr("user.dir", b"yes")],
            flags: Flags::APPEND | Flags::named("topdir").unwrap() | Flags::named("dirsync").unwrap(),
            ..Metadata { kind: FileKind::Dir, ..alices() }
        };
        for name in [&b"a"[..], b"b"] {
            scratch.dir.make_dir(name).unwrap();
            let dir = scratch.dir.open_dir(name).unwrap();
            assert_eq!(apply_to_file(&dir, &through_the_text(&wanted), (1234, 50)).unwrap(), [""; 0]);
            assert_eq!(apply_flags(&dir, wanted.flags).unwrap(), [""; 0]);
            assert_eq!(scratch.capture(&dir), wanted);
        }
    }

    #[test]
    fn symlinks_and_nodes_come_back() {
        if !is_root() {
            return;
        }
        let scratch = Scratch::new();
        let nodes = [
            (FileKind::Char, Some((1, 3))),
            (FileKind::Block, Some((4095, 1_048_575))),
            (FileKind::Fifo, None),
            (FileKind::Socket, None),
            (FileKind::Symlink, None),
        ];
        for (kind, rdev) in nodes {
            let name = match kind {
                FileKind::Symlink => scratch.dir.create_temp_symlink(b"/nowhere"),
                _ => scratch.dir.create_temp_node(kind, rdev.unwrap_or_default()),
            };
            let name = name.unwrap();
            let mode = if kind == FileKind::Symlink { 0o777 } else { 0o2640 };
            let wanted = Metadata { kind, rdev, mode, xattrs: vec![xattr("trusted.gdo", b"of the link itself")], ..alices() };
            let skipped = apply_to_entry(&scratch.dir, &name, &through_the_text(&wanted), (1234, 50)).unwrap();
            assert_eq!(skipped, [""; 0], "{kind:?}");
            assert_eq!(scratch.capture_entry(&name), wanted);
        }
    }

    #[test]
    fn what_the_target_had_and_the_record_has_not_is_removed() {
        if !is_root() {
            return;
        }
        let scratch = Scratch::new();
        let file = scratch.file();
        let before = Metadata {
            xattrs: vec![
                xattr("security.capability", &capability()),
                xattr("system.posix_acl_access", &acl(7, 0, 7)),
                xattr("trusted.old", b"1"),
                xattr("user.old", b"1"),
            ],
            mode: 0o770,
            ..alices()
        };
        apply_to_file(&file, &before, (1234, 50)).unwrap();
        assert_eq!(scratch.capture(&file), before);
        let wanted = Metadata { mode: 0o640, xattrs: vec![xattr("user.new", b"1")], ..alices() };
        apply_to_file(&file, &wanted, (1234, 50)).unwrap();
        assert_eq!(scratch.capture(&file), wanted);
    }

    #[test]
    fn the_mode_has_the_last_word_over_an_acl() {
        let scratch = Scratch::new();
        let file = scratch.file();
        let me = (stat_fd(&file).unwrap().uid, stat_fd(&file).unwrap().gid);
        // Where record and ACL disagree (somebody edited the mode), the mask follows the mode.
        for (mode, mask_in, mask_out) in [(0o740, 7, 4), (0o770, 0, 7), (0o700, 7, 0), (0o750, 5, 5)] {
            let wanted = Metadata { mode, xattrs: vec![xattr("system.posix_acl_access", &acl(7, 5, mask_in))], ..alices() };
            apply_to_file(&file, &wanted, me).unwrap();
            let have = scratch.capture(&file);
            assert_eq!(have.mode, mode);
            assert_eq!(have.xattr(b"system.posix_acl_access").unwrap(), acl(7, 5, mask_out), "{mode:o}");
        }
    }

    #[test]
    fn an_acl_inherited_from_the_directory_does_not_stay() {
        let scratch = Scratch::new();
        scratch.dir.make_dir(b"d").unwrap();
        let dir = scratch.dir.open_dir(b"d").unwrap();
        let default = xattr("system.posix_acl_default", &acl(7, 7, 7));
        let me = (stat_fd(&dir).unwrap().uid, stat_fd(&dir).unwrap().gid);
        apply_to_file(&dir, &Metadata { xattrs: vec![default], ..Metadata::new(FileKind::Dir) }, me).unwrap();
        let file = dir.create_temp().unwrap().1;
        assert!(scratch.capture(&file).xattr(b"system.posix_acl_access").is_some());
        apply_to_file(&file, &Metadata { mode: 0o640, ..alices() }, me).unwrap();
        assert_eq!((scratch.capture(&file).mode, scratch.capture(&file).xattrs), (0o640, vec![]));
    }

    #[test]
    fn a_live_file_keeps_its_setuid_bit_while_its_time_is_repaired() {
        if !is_root() {
            return;
        }
        let scratch = Scratch::new();
        let file = scratch.file();
        let wanted = Metadata { mode: 0o4755, xattrs: vec![xattr("security.capability", &capability())], ..alices() };
        apply_to_file(&file, &wanted, (1234, 50)).unwrap();
        crate::safepath::set_mtime_fd(&file, Time { secs: 1, nanos: 0 }).unwrap();
        // An immutable file takes no change of owner or mode; nothing here may even try.
        let ctime = stat_fd(&file).unwrap().ctime;
        apply_to_file(&file, &Metadata { mtime: None, ..wanted.clone() }, (1234, 50)).unwrap();
        assert_eq!(stat_fd(&file).unwrap().ctime, ctime);
        apply_to_file(&file, &wanted, (1234, 50)).unwrap();
        assert_eq!(scratch.capture(&file), wanted);
    }

    #[test]
    fn locking_flags_are_cleared_to_replace_and_changed_under_lock() {
        if !is_root() {
            return;
        }
        let scratch = Scratch::new();
        let (name, file) = scratch.dir.create_temp().unwrap();
        let nodump = Flags::named("nodump").unwrap();
        apply_flags(&file, Flags::IMMUTABLE | nodump).unwrap();
        let error = apply_to_file(&file, &alices(), (1234, 50)).unwrap_err();
        assert_eq!(format!("{error:#}"), "cannot set owner 1234:50: operation not permitted");
        assert!(scratch.dir.remove_file(&name).is_err());
        assert_eq!(apply_flags(&file, Flags::IMMUTABLE | Flags::APPEND).unwrap(), [""; 0]);
        assert_eq!(flags(&file).unwrap(), Flags::IMMUTABLE | Flags::APPEND);
        assert_eq!(clear_flags(&file).unwrap(), Flags::IMMUTABLE | Flags::APPEND);
        assert_eq!(clear_flags(&file).unwrap(), Flags::default());
        scratch.dir.remove_file(&name).unwrap();
    }

    #[test]
    fn a_flag_that_the_filesystem_does_not_have_is_told_and_the_rest_is_set() {
        let scratch = Scratch::new();
        let file = scratch.file();
        let nodump = Flags::named("nodump").unwrap();
        let kernels_own = |file| super::super::inode::raw_flags(file).unwrap().unwrap() & !Flags::all().bits();
        let before = kernels_own(&file);
        // Names that match in any case are for directories only, on every filesystem.
        assert_eq!(apply_flags(&file, nodump | Flags::CASEFOLD).unwrap(), ["flag 'casefold' could not be set"]);
        assert_eq!(flags(&file).unwrap(), nodump);
        assert_eq!(kernels_own(&file), before); // such as the extents of ext4
        apply_flags_before_content(&file, Flags::CASEFOLD | Flags::named("sync").unwrap()).unwrap();
        assert_eq!(flags(&file).unwrap(), nodump);
    }

    #[test]
    fn without_privilege_the_rest_is_set_and_nobody_elses_rights_are_lent() {
        if !is_root() {
            return;
        }
        let scratch = Scratch::new();
        let file = scratch.file();
        rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(4321)), Some(rustix::fs::Gid::from_raw(4321))).unwrap();
        let xattrs = vec![xattr("security.capability", &capability()), xattr("trusted.a", b"1"), xattr("user.a", b"1")];
        let wanted = Metadata { xattrs, flags: Flags::IMMUTABLE | Flags::named("nodump").unwrap(), ..alices() };
        let unprivileged = || {
            // Of this thread only, which ends here: the other tests stay root.
            let (uid, gid) = (rustix::thread::Uid::from_raw(4321), rustix::thread::Gid::from_raw(4321));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            [apply_to_file(&file, &wanted, (1234, 50)).unwrap(), apply_flags(&file, wanted.flags).unwrap()].concat()
        };
        let skipped = std::thread::scope(|scope| scope.spawn(unprivileged).join().unwrap());
        let expected = [
            "owner 1234: operation not permitted",
            "group 50: operation not permitted",
            "setuid or setgid left out, because the owner could not be set",
            "attribute 'trusted.a': operation not permitted",
            "attribute 'security.capability': operation not permitted",
            "flag 'immutable' could not be set",
        ];
        assert_eq!(skipped, expected);
        let have = scratch.capture(&file);
        assert_eq!((have.uid, have.mode, have.mtime), (4321, 0o750, wanted.mtime));
        assert_eq!(have.xattrs, [xattr("user.a", b"1")]);
        assert_eq!(have.flags, Flags::named("nodump").unwrap());
    }

    #[test]
    fn the_wrong_type_is_refused() {
        let scratch = Scratch::new();
        let error = apply_to_file(&scratch.dir, &alices(), (0, 0)).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
    }

    #[test]
    fn minus_one_is_nobody() {
        let scratch = Scratch::new();
        let file = scratch.file();
        assert!(apply_to_file(&file, &alices(), (u32::MAX, 0)).is_err());
        assert!(apply_to_file(&file, &alices(), (0, u32::MAX)).is_err());
    }
}
