//! Git's own files against the checksums that they carry, and what to do with those that do not hold.
//!
//! `git fsck` says which objects are missing or damaged, but seldom in which file, and it stops at some damage. Here each file is looked at by itself.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha1dc::Hasher;

use super::inflate::OpenFiles;
use super::packindex::PackIndex;
use super::roots::Root;
use super::verify::{IsWanted, Sound, Verified};
use super::{Git, Objects, Oid};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};

/// A file of git's that is not what it ought to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The file.
    pub path: PathBuf,
    /// Where in it, in bytes, if that is known.
    pub offset: Option<u64>,
    /// What is wrong with it.
    pub problem: String,
    /// What kind of file it is.
    pub role: Role,
}

/// What git needs a file for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It only makes git faster, and git makes it anew.
    Derived,
    /// It says where objects lie in a pack, and can be made from that.
    Index,
    /// The same, and it is not there: that is damage if objects are missing, and else what a run leaves that was killed between pack and index.
    LostIndex,
    /// It holds objects.
    Pack,
    /// It is one object.
    Loose(Oid),
}

impl Role {
    /// Returns what to do about damage.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Derived => "'gdo check --repair' removes it; git makes it anew",
            Self::Index | Self::LostIndex => "'gdo check --repair' makes it anew from its pack",
            Self::Pack | Self::Loose(_) => {
                "'gdo check --repair --from SOURCE' takes the objects from a copy of the repository, or small files from a directory that has them"
            }
        }
    }
}

/// What git copies out of commits to find its way faster, below `objects/info`.
const GRAPH: &str = "commit-graph";

/// The list of its parts, where it is in parts.
const CHAIN: &str = "commit-graphs/commit-graph-chain";

/// What git copies out of the indexes of packs, below `objects/pack`, and, with this beginning, what belongs to it.
const MIDX: &str = "multi-pack-index";

/// Where that is in parts, and the list of them.
const MIDX_PARTS: &str = "multi-pack-index.d";
const MIDX_CHAIN: &str = "multi-pack-index.d/multi-pack-index-chain";

/// Directory in the state that holds what was taken out of the object database, arranged like one.
pub(super) const QUARANTINE: &str = "quarantine/objects";

impl Git {
    /// Looks at every file of the object database, at every byte of it, and compares packs with those that were in order `before`; also tells which blobs
    /// there are that the caller wants to know, and whether the `roots`, which were read before, and the objects lead to any that are not there.
    pub fn check_files(&self, is_wanted: IsWanted<'_>, before: &Sound, roots: &[Root]) -> Result<Verified> {
        let mut verified = self.verify_objects(is_wanted, before, roots)?;
        let found = &mut verified.damaged;
        let dir = self.git_dir().join("objects");
        for path in list(&dir.join("pack"))? {
            self.check_pack_file(&path, found)?;
        }
        self.check_copies(found)?;
        found.sort_by(|a, b| (&a.path, a.offset).cmp(&(&b.path, b.offset)));
        if !found.is_empty() {
            verified.wanted = None;
            verified.sound = Sound::default();
        }
        Ok(verified)
    }

    /// Verifies git's copies of what the commits and the indexes of packs say, which may be in parts: the checksums, and, by git, that they are right.
    fn check_copies(&self, found: &mut Vec<Damaged>) -> Result<()> {
        let n_before = found.len();
        let files = self.graph_files()?;
        files.iter().filter(|path| !path.ends_with(CHAIN)).try_for_each(|path| check_sum(path, Role::Derived, found))?;
        if found.len() == n_before {
            let heads = files.into_iter().filter(|path| path.ends_with(CHAIN) || path.ends_with(GRAPH));
            self.let_verify(&["commit-graph", "verify", "--no-progress"], heads, found)?;
        }
        // Its checksum was looked at with the packs.
        let heads = [MIDX, MIDX_CHAIN].map(|name| self.git_dir().join("objects/pack").join(name));
        match found.iter().any(|damaged| heads.contains(&damaged.path)) {
            true => Ok(()),
            false => self.let_verify(&[MIDX, "verify"], heads.into_iter(), found),
        }
    }

    /// Lets git verify a copy of its own, which it says of the `heads` that are there.
    fn let_verify(&self, args: &[&str], heads: impl Iterator<Item = PathBuf>, found: &mut Vec<Damaged>) -> Result<()> {
        let heads: Vec<PathBuf> = heads.filter(|path| durable::is_there(path)).collect();
        if heads.is_empty() {
            return Ok(());
        }
        let verify = || -> Result<Option<String>> {
            let output = self.output(args, b"")?;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).lines().next().map(str::to_owned);
            Ok(said.or((!output.status.success()).then(|| "failed without a word".to_owned())))
        };
        // Others may write it anew meanwhile: what counts is said again.
        if verify()?.is_some()
            && let Some(said) = verify()?
        {
            let problem = format!("git {} verify: {said}", args[0]);
            let damaged = |path| Damaged { path, offset: None, problem: problem.clone(), role: Role::Derived };
            found.extend(heads.into_iter().map(damaged));
        }
        Ok(())
    }

    /// Removes git's copy of what the commits say; a `git gc` that we did not begin makes it anew.
    pub fn remove_graph(&self) -> Result<()> {
        self.graph_files()?.iter().try_for_each(|path| durable::remove(path))
    }

    /// Lets git put packs together and remove those that it needs no more, and with them its copy of what their indexes say: git, which does not read that
    /// here, would leave it, and it would name them.
    pub fn repack<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<()> {
        self.remove_midx()?;
        let done = self.run(args);
        // Another git may have written it meanwhile.
        self.remove_midx()?;
        done.map(drop)
    }

    /// Removes git's copy of what the indexes of packs say; locks of it belong to who writes it.
    pub fn remove_midx(&self) -> Result<()> {
        let dir = self.git_dir().join("objects/pack");
        let is_of_it = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            name.starts_with(MIDX.as_bytes()) && !name.ends_with(b".lock")
        };
        let parts = list(&dir.join(MIDX_PARTS))?;
        let files = list(&dir)?.into_iter().filter(|path| !path.ends_with(MIDX_PARTS)).chain(parts);
        files.filter(is_of_it).try_for_each(|path| durable::remove(&path))
    }

    /// Returns the files in which the copy of what the commits say is, the list of its parts before these, and the one that may not be there.
    fn graph_files(&self) -> Result<Vec<PathBuf>> {
        let dir = self.git_dir().join("objects/info");
        let parts =
            list(&dir.join("commit-graphs"))?.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "graph"));
        Ok([dir.join(CHAIN), dir.join(GRAPH)].into_iter().chain(parts).collect())
    }

    fn check_pack_file(&self, path: &Path, found: &mut Vec<Damaged>) -> Result<()> {
        let has = |ext: &str| durable::is_file(&path.with_extension(ext));
        let extension = path.extension().and_then(|ext| ext.to_str()).unwrap_or_default();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let stray = |problem: &str, role| Damaged { path: path.to_owned(), offset: None, problem: problem.into(), role };
        match extension {
            // Git verifies it where it is in parts.
            _ if name == MIDX_PARTS || name.ends_with(".lock") => (),
            _ if name.starts_with(MIDX) => check_sum(path, Role::Derived, found)?,
            // What git did not finish.
            _ if name.starts_with('.') || name.starts_with("tmp_") => (),
            "pack" if !has("idx") => {
                let problem = "this index of a pack is missing, so that git does not see the pack";
                found.push(Damaged { path: path.with_extension("idx"), ..stray(problem, Role::LostIndex) });
            }
            "idx" if !has("pack") && has("idx") => {
                let problem = "this pack is missing, and its objects with it";
                found.push(Damaged { path: path.with_extension("pack"), ..stray(problem, Role::Pack) });
            }
            "idx" => {
                check_sum(path, Role::Index, found)?;
                check_pair(path, found)?;
            }
            "rev" | "bitmap" | "mtimes" => {
                check_sum(path, Role::Derived, found)?;
                check_kin(path, found)?;
                if extension == "rev" {
                    check_order(path, found)?;
                }
            }
            _ => (),
        }
        Ok(())
    }

    /// Takes what is `damaged` out of the object database, after making anew what can be; sound objects of damaged packs are copied back.
    ///
    /// What was taken out lies in `quarantine` in the state directory `state`, where [`super::salvage::Salvage`] finds what somebody misses later.
    pub fn put_aside_damaged(&self, state: &Path, damaged: &[Damaged], objects: &Objects) -> Result<()> {
        let mut packs = Vec::new();
        let mut stems: Vec<PathBuf> = damaged.iter().map(|found| found.path.clone()).collect();
        stems.dedup();
        for path in &stems {
            let of_file = || damaged.iter().filter(|found| found.path == *path);
            let role =
                of_file().map(|found| found.role).find(|role| *role == Role::Pack).or_else(|| of_file().map(|f| f.role).next());
            match role {
                Some(Role::Derived) => self.move_aside(state, path)?,
                Some(Role::Index | Role::LostIndex) => {
                    let aside = place_for_pack(state, path)?;
                    move_as(path, &aside, &["idx", "rev"])?;
                    let pack = path.with_extension("pack");
                    if let Err(error) = self.run(&["index-pack".as_ref(), pack.as_os_str()])
                        && durable::is_file(&pack)
                    {
                        // Then the pack itself is damaged: git can read none of it.
                        move_as(path, &aside, &["pack"]).map_err(|_| error)?;
                        packs.push(aside.with_extension("pack"));
                    }
                }
                Some(Role::Pack) => {
                    let aside = place_for_pack(state, path)?;
                    move_as(path, &aside, &["idx", "rev", "bitmap", "mtimes", "pack"])?;
                    packs.push(aside.with_extension("pack"));
                }
                Some(Role::Loose(_)) => self.move_aside(state, path)?,
                None => (),
            }
        }
        for midx in [MIDX, MIDX_CHAIN].map(|name| self.git_dir().join("objects/pack").join(name)) {
            if !damaged.is_empty() && durable::is_file(&midx) {
                self.move_aside(state, &midx)?;
            }
        }
        durable::sync_filesystem(self.git_dir())?;
        self.salvage(&packs, objects)?;
        objects.refresh();
        Ok(())
    }

    /// Moves a file of the object database to the same place in the quarantine.
    fn move_aside(&self, state: &Path, path: &Path) -> Result<()> {
        let Ok(below) = path.strip_prefix(self.git_dir().join("objects")) else { return Ok(()) };
        let aside = state.join(QUARANTINE).join(below);
        durable::create_dir_all(aside.parent().expect("BUG: it has a directory"), 0o700)?;
        durable::move_to(path, &aside)
    }
}

/// Returns where in the quarantine a pack and what belongs to it may lie, whatever lies there of an earlier one of its name.
fn place_for_pack(state: &Path, pack: &Path) -> Result<PathBuf> {
    let dir = state.join(QUARANTINE).join("pack");
    durable::create_dir_all(&dir, 0o700)?;
    let stem = pack.file_stem().unwrap_or_default();
    let of_number = |n: u32| {
        let mut name = stem.to_owned();
        if n > 0 {
            name.push(format!("-{n}"));
        }
        dir.join(name)
    };
    let is_free = |place: &PathBuf| ["pack", "idx"].iter().all(|end| !durable::is_there(&place.with_extension(end)));
    Ok((0..).map(of_number).find(is_free).expect("BUG: there are more numbers than files"))
}

/// Moves the files of a pack that have one of these `extensions`.
fn move_as(pack: &Path, place: &Path, extensions: &[&str]) -> Result<()> {
    extensions.iter().try_for_each(|end| durable::move_to(&pack.with_extension(end), &place.with_extension(end)))
}

/// Says whether a file goes on after the deflated object that it begins with, which a reader does not notice.
pub(super) fn has_trailing_bytes(path: &Path) -> Result<bool> {
    let what = || format!("cannot read '{}'", path.display());
    let file = durable::open(path).context(what)?;
    let len = file.metadata().context(what)?.len();
    let mut inflater = flate2::read::ZlibDecoder::new(file);
    std::io::copy(&mut inflater, &mut std::io::sink()).context(what)?;
    Ok(inflater.total_in() != len)
}

/// Verifies the SHA-1 that all of git's binary files end with.
pub(super) fn check_sum(path: &Path, role: Role, found: &mut Vec<Damaged>) -> Result<()> {
    let what = || format!("cannot read '{}'", path.display());
    // Opened once: a pack that git removes meanwhile is no damaged one.
    let file = match durable::open(path) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        opened => opened.context(what)?,
    };
    let problem = match ends_in_its_sum(&file) {
        Ok(false) => "its bytes do not match the checksum that it ends with".to_owned(),
        Ok(true) if magic_of(path).is_none_or(|magic| begins_with(&file, magic)) => return Ok(()),
        Ok(true) => "it does not begin as a file of its kind".to_owned(),
        Err(error) if durable::is_rot(&error) => format!("not all of it can be read: {:#}", Error::from(error)),
        Err(error) => return Err(error).context(what),
    };
    found.push(Damaged { path: path.to_owned(), offset: None, problem, role });
    Ok(())
}

/// Returns what a file with this name begins with.
fn magic_of(path: &Path) -> Option<&'static [u8]> {
    let name = path.file_name()?.to_str()?;
    let kinds: [(&str, &[u8]); 6] = [
        (".pack", b"PACK"),
        (".idx", b"\xfftOc"),
        (".rev", b"RIDX"),
        (".bitmap", b"BITM"),
        (".mtimes", b"MTME"),
        (".graph", b"CGPH"),
    ];
    let named = [("commit-graph", &b"CGPH"[..]), (MIDX, b"MIDX")];
    let by_end = kinds.iter().find(|(end, _)| name.ends_with(end));
    by_end.or_else(|| named.iter().find(|(whole, _)| name == *whole)).map(|(_, magic)| *magic)
}

fn begins_with(file: &File, magic: &[u8]) -> bool {
    let mut start = vec![0; magic.len()];
    file.read_exact_at(&mut start, 0).is_ok() && start == magic
}

/// Says whether a file ends with the SHA-1 of all that comes before.
pub(super) fn ends_in_its_sum(mut file: &File) -> io::Result<bool> {
    let Some(body) = file.metadata()?.len().checked_sub(SUM_LEN as u64) else { return Ok(false) };
    let (mut hasher, mut buffer, mut left) = (Hasher::new(), vec![0; 1 << 16], body);
    while left > 0 {
        let n = file.read(&mut buffer[..left.min(1 << 16) as usize])?;
        if n == 0 {
            return Ok(false);
        }
        hasher.update(&buffer[..n]);
        left -= n as u64;
    }
    let mut sum = [0; SUM_LEN];
    file.read_exact(&mut sum)?;
    Ok(hasher.finalize().is_ok_and(|digest| digest.to_bytes() == sum))
}

/// Bytes of a SHA-1.
pub(super) const SUM_LEN: usize = 20;

/// Verifies that an index is of the pack beside it.
fn check_pair(path: &Path, found: &mut Vec<Damaged>) -> Result<()> {
    let pack = path.with_extension("pack");
    // What git removed meanwhile is told of where it is missed.
    if !is_of_its_pack(path)? && durable::is_there(path) && durable::is_there(&pack) {
        let problem = "this index is of another pack, or one of both is damaged".to_owned();
        found.push(Damaged { path: path.to_owned(), offset: None, problem, role: Role::Index });
    }
    Ok(())
}

/// Says whether the index at `path` and the pack beside it hold the same checksum of the pack.
pub(super) fn is_of_its_pack(path: &Path) -> Result<bool> {
    Ok(tail(path, 2 * SUM_LEN as u64)? == tail(&path.with_extension("pack"), SUM_LEN as u64)?)
}

/// Says whether a derived file is of the pack beside it.
fn check_kin(path: &Path, found: &mut Vec<Damaged>) -> Result<()> {
    // A bitmap has the pack's checksum near its start, the others near their end.
    let own = match path.extension().is_some_and(|ext| ext == "bitmap") {
        true => head(path, 12, SUM_LEN)?,
        false => tail(path, 2 * SUM_LEN as u64)?,
    };
    let pack = path.with_extension("pack");
    let is_other = own != tail(&pack, SUM_LEN as u64)? && found.iter().all(|found| found.path != path);
    // Git removes a pack and what belongs to it file by file.
    if is_other && durable::is_there(path) && durable::is_there(&pack) {
        let problem = "this file is of another pack".to_owned();
        found.push(Damaged { path: path.to_owned(), offset: None, problem, role: Role::Derived });
    }
    Ok(())
}

/// Says whether a `.rev` has the objects of its index in the order of the pack.
fn check_order(path: &Path, found: &mut Vec<Damaged>) -> Result<()> {
    let (files, index) = (OpenFiles::default(), path.with_extension("idx"));
    let listed = PackIndex::open(&index, 0).and_then(|index| index.by_offset(&files));
    // What is wrong with the index is told of that.
    let (Ok(listed), Some(bytes)) = (listed, durable::read_if_there(path)?) else { return Ok(()) };
    let ranks = bytes.get(REV_HEADER..bytes.len().saturating_sub(2 * SUM_LEN)).unwrap_or_default();
    let is_right = ranks.len() == 4 * listed.len()
        && ranks.chunks_exact(4).zip(&listed).all(|(rank, (_, expected))| rank == expected.to_be_bytes());
    if !is_right && durable::is_there(path) && found.iter().all(|found| found.path != path && found.path != index) {
        let problem = "it does not have the objects in the order of the pack".to_owned();
        found.push(Damaged { path: path.to_owned(), offset: None, problem, role: Role::Derived });
    }
    Ok(())
}

/// Bytes that a `.rev` begins with: its kind, its version, and the kind of hash.
const REV_HEADER: usize = 12;

/// Returns the 20 bytes that begin `from_end` bytes before the end; nothing if the file is shorter.
fn tail(path: &Path, from_end: u64) -> Result<Vec<u8>> {
    let len = durable::look(path).map_or(0, |meta| meta.len());
    match len.checked_sub(from_end) {
        Some(at) => head(path, at, SUM_LEN),
        None => Ok(Vec::new()),
    }
}

fn head(path: &Path, at: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    match durable::open(path).and_then(|file| Ok(file.read_exact_at(&mut bytes, at)?)) {
        // What is missing or too short is told of elsewhere, and equals nothing.
        Err(_) => Ok(Vec::new()),
        Ok(()) => Ok(bytes),
    }
}

/// Returns what lies in `dir`, sorted; nothing if there is no such directory.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("cannot list '{}'", dir.display());
    if !durable::is_dir(dir) {
        return Ok(Vec::new());
    }
    let listed = match durable::list(dir) {
        // Git removes directories of loose objects when they are empty.
        Err(error) if error.kind() == Kind::NotFound => return Ok(Vec::new()),
        listed => listed.context(what)?,
    };
    let mut paths: Vec<_> = listed.into_iter().map(|listed| listed.path).collect();
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Makes a repository with a few objects in a pack that has all files which git makes beside one; returns it with the path of the pack.
    fn repository() -> (tempfile::TempDir, Git, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let said = |args: &[&str], input: &str| {
            String::from_utf8(git.run_with_input(args, input.as_bytes()).unwrap()).unwrap().trim().to_owned()
        };
        let blobs = ["one", "two", "three"].map(|text| said(&["hash-object", "-w", "--stdin"], text));
        let tree = said(&["mktree"], &blobs.map(|oid| format!("100644 blob {oid}\t{oid}\n")).concat());
        let text = format!("tree {tree}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n");
        let commit = said(&["hash-object", "-w", "-t", "commit", "--stdin"], &text);
        said(&["update-ref", "refs/heads/main", &commit], "");
        said(&["-c", "pack.writeReverseIndex=true", "repack", "-adqb"], "");
        let packs = list(&dir.path().join("objects/pack")).unwrap();
        let pack = packs.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "pack")).unwrap();
        (dir, git, pack)
    }

    fn damaged(git: &Git) -> Vec<(PathBuf, Role)> {
        let found = git.check_files(&|_| false, &Sound::default(), &[]).unwrap().damaged;
        found.into_iter().map(|found| (found.path, found.role)).collect()
    }

    #[test]
    fn an_order_that_is_not_that_of_the_pack_is_found_though_its_checksum_holds() {
        let (_dir, git, pack) = repository();
        assert_eq!(damaged(&git), []);
        let rev = pack.with_extension("rev");
        let mut bytes = fs::read(&rev).unwrap();
        let (one, two) = (REV_HEADER..REV_HEADER + 4, REV_HEADER + 4..REV_HEADER + 8);
        let second = bytes[two].to_vec();
        bytes.copy_within(one.clone(), one.end);
        bytes[one].copy_from_slice(&second);
        let end = bytes.len() - SUM_LEN;
        let mut hasher = Hasher::new();
        hasher.update(&bytes[..end]);
        bytes[end..].copy_from_slice(hasher.finalize().unwrap().to_bytes().as_ref());
        fs::remove_file(&rev).unwrap();
        fs::write(&rev, bytes).unwrap();
        assert_eq!(damaged(&git), [(rev, Role::Derived)]);
    }

    #[test]
    fn a_commit_graph_is_looked_at_whether_it_is_in_parts_or_not() {
        for (more, head) in [(&[][..], GRAPH), (&["--split"], CHAIN)] {
            let (dir, git, _) = repository();
            let write = |git: &Git| {
                let args = ["-c", "core.commitGraph=true", "commit-graph", "write", "--reachable"];
                git.run(&[&args, more].concat()).unwrap();
            };
            let info = dir.path().join("objects/info");
            write(&git);
            assert!(info.join(head).is_file() && damaged(&git).is_empty());
            // One that git did not finish.
            fs::create_dir_all(info.join("commit-graphs")).unwrap();
            fs::write(info.join("commit-graphs/tmp_graph_x"), "x").unwrap();
            assert_eq!(damaged(&git), []);
            let path = git.graph_files().unwrap().into_iter().rfind(|path| path.is_file()).unwrap();
            let good = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            fs::write(&path, [&good[..good.len() - 1], &[!good[good.len() - 1]]].concat()).unwrap();
            assert_eq!(damaged(&git), [(path.clone(), Role::Derived)]);
            // That of another history.
            fs::write(&path, &good).unwrap();
            let tip = String::from_utf8(git.run(&["rev-parse", "main"]).unwrap()).unwrap();
            let text = git.run(&["cat-file", "commit", "main"]).unwrap();
            let again =
                git.run_with_input(&["hash-object", "-w", "-t", "commit", "--stdin"], &[&text[..], b"y\n"].concat()).unwrap();
            git.run(&["update-ref", "refs/heads/main", String::from_utf8(again).unwrap().trim()]).unwrap();
            assert_eq!(damaged(&git), []);
            git.run(&["reflog", "expire", "--expire=now", "--all"]).unwrap();
            git.run(&["repack", "-adq"]).unwrap();
            git.run(&["prune", "--expire=now"]).unwrap();
            assert!(git.run(&["cat-file", "-e", tip.trim()]).is_err());
            assert_eq!(damaged(&git), [(info.join(head), Role::Derived)]);
            git.remove_graph().unwrap();
            assert_eq!(damaged(&git), []);
        }
    }

    #[test]
    fn an_index_of_several_packs_that_names_one_that_is_gone_is_damaged() {
        let (dir, git, _) = repository();
        git.run(&["-c", "core.multiPackIndex=true", MIDX, "write"]).unwrap();
        let midx = dir.path().join("objects/pack").join(MIDX);
        assert!(midx.is_file() && damaged(&git).is_empty());
        let blob = git.run_with_input(&["hash-object", "-w", "--stdin"], b"more").unwrap();
        git.run(&["update-ref", "refs/tags/more", String::from_utf8(blob).unwrap().trim()]).unwrap();
        git.run(&["repack", "-adq"]).unwrap();
        assert_eq!(damaged(&git), [(midx.clone(), Role::Derived)]);
        let parts = midx.with_extension("d");
        fs::create_dir(&parts).unwrap();
        for name in [parts.join("multi-pack-index-chain"), parts.join("multi-pack-index-chain.lock"), midx.with_extension("lock")]
        {
            fs::write(name, "x").unwrap();
        }
        git.remove_midx().unwrap();
        assert_eq!(damaged(&git), []);
        assert!(!midx.exists() && midx.with_extension("lock").exists() && list(&parts).unwrap().len() == 1);
    }

    #[test]
    fn a_pack_of_any_name_is_looked_at_but_for_what_git_did_not_finish() {
        let (_dir, git, pack) = repository();
        let files = ["pack", "idx", "rev", "bitmap"].map(|ext| pack.with_extension(ext));
        for (name, is_looked_at) in [("other", true), (".tmp-1-pack-x", false), ("tmp_pack_x", false)] {
            let moved = files.each_ref().map(|path| path.with_file_name(name).with_extension(path.extension().unwrap()));
            files.iter().zip(&moved).for_each(|(from, to)| _ = fs::copy(from, to).unwrap());
            assert_eq!(damaged(&git), [], "{name}");
            for path in &moved[2..] {
                let good = fs::read(path).unwrap();
                let mut bad = good.clone();
                bad[30] ^= 1;
                fs::remove_file(path).unwrap();
                fs::write(path, bad).unwrap();
                let expected = is_looked_at.then(|| (path.clone(), Role::Derived));
                assert_eq!(damaged(&git), Vec::from_iter(expected), "{}", path.display());
                fs::write(path, good).unwrap();
            }
            moved.iter().for_each(|path| fs::remove_file(path).unwrap());
        }
    }
}
