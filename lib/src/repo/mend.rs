//! Repair: what is damaged goes out of the way, what can be derived is made anew, what a second copy has is taken from there.
//!
//! A source is trusted only as far as the hash: every object and every chunk is verified before it is stored.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::check::for_each_index;
use super::witness::{self, Witnessed};
use super::{INDEX_NOTE, Places, Repo, Settings, enrolled, holders};
use crate::chunk::ChunkerSpec;
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::file::read;
use crate::file::write::{ChunkSink, cut_file};
use crate::git::object::{ObjectKind, decode_tree, object_id};
use crate::git::salvage::Salvage;
use crate::git::verify::Sound;
use crate::git::{CommitData, Git, Index, Kept, Objects, Oid, PackWriter};
use crate::id::ChunkId;
use crate::metadata::holes;
use crate::progress::Progress;
use crate::safepath::{Dir, FileKind};
use crate::store::{MAX_CHUNK, Store, WriteOptions, Writer};

/// What a repair did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Damaged files of git's that were put aside or made anew.
    pub n_git_files: usize,
    /// Findings in the chunk store.
    pub n_store_findings: usize,
    /// Objects of git's that came from a source.
    pub n_objects: usize,
    /// Chunks that came from a source.
    pub n_chunks: usize,
}

/// A second copy of something.
enum Source {
    Git(Box<Objects>),
    Store(Store),
    Files(Files),
}

/// A directory with files as they are; with a name, that one alone.
struct Files {
    dir: Dir,
    path: PathBuf,
    name: Option<Vec<u8>>,
}

/// What a source gave, or why it could not be read. That ends no repair: what was damaged is put aside by then, and another source may have the same.
type Taken = Result<()>;

impl Source {
    /// Finds out what there is at `path`: a repository, a chunk store, a directory of files (which may have a repository in it), or one file.
    fn all_at(path: &Path) -> Result<Vec<Self>> {
        let what = || format!("cannot take anything from '{}'", path.display());
        let path = std::path::absolute(path).context(what)?;
        if durable::is_file(&path) {
            let (dir, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
            let name = Some(name.as_bytes().to_vec());
            return Ok(vec![Self::Files(Files { dir: Dir::open(dir).context(what)?, path: dir.to_owned(), name })]);
        }
        if durable::is_dir(&path.join("packs")) && durable::is_file(&path.join("format")) {
            return Ok(vec![Self::Store(Store::open(&path).context(what)?)]);
        }
        let mut all = Vec::new();
        for git_dir in [path.clone(), path.join(".git")] {
            if !durable::is_dir(&git_dir.join("objects")) {
                continue;
            }
            all.push(Self::Git(Box::new(Objects::open(&git_dir).context(what)?)));
            let mut places = Places::apart(&git_dir, &path);
            if let Ok((_, config)) = Git::open(&git_dir) {
                places.store = places.configured_store(&config);
            }
            all.extend(Store::open(&places.store).ok().map(Self::Store));
        }
        if !durable::is_dir(&path.join("objects")) {
            all.push(Self::Files(Files { dir: Dir::open(&path).context(what)?, path, name: None }));
        }
        Ok(all)
    }
}

/// Repairs what can be repaired with what is here, and with `from`: repositories, chunk stores, directories or files with the same content.
///
/// What was damaged lies in `quarantine` in the state directory and in the store. What is still wrong, [`super::check::check`] tells.
pub fn repair(repo: &Repo, from: &[PathBuf], progress: &Progress) -> Result<Repaired> {
    let sources = from.iter().map(|path| Source::all_at(path)).collect::<Result<Vec<_>>>()?;
    let sources: Vec<Source> = sources.into_iter().flatten().collect();
    let lock = repo.lock()?;
    match enrolled::enrol(&repo.places) {
        // Who else stood in it, only a person can know; the check says so.
        Err(error) if error.kind() == Kind::Corrupt => (),
        other => other?,
    }
    // Of a repository with a damaged one git does not say what is missing. One that is nothing for us, as in a merge, ends it before anything is put aside.
    mend_index(repo)?;
    // What the work tree still has is read again, so that what is still lost comes back with the next snapshot, also if this run is cut off.
    durable::remove(&repo.places.state.join(INDEX_NOTE))?;
    let mut repaired = Repaired::default();
    progress.stage("repairing git objects", 0, 0);
    let damaged = repo.git.check_files(&|_| false, &Sound::default(), &[])?.damaged;
    repaired.n_git_files = damaged.len();
    repo.git.put_aside_damaged(&repo.places.state, &damaged, &repo.objects)?;
    repaired.n_objects = mend_objects(repo, &sources, progress)?;
    progress.stage("repairing the chunk store", 0, 0);
    repaired.n_store_findings = repo.store.repair(progress)?.len();
    let cache = repo.chunks.local().cache();
    let cached = cache.store().map_or(Ok(0), |cached| cached.check(true, progress).map(|found| found.len()))?;
    if cached > 0 {
        cache.shrink(0)?;
        repaired.n_store_findings += cached;
    }
    repaired.n_chunks = mend_chunks(repo, &sources, progress)?;
    repaired.n_store_findings += usize::from(holders::mend(repo)?);
    repo.repair_refs(&lock)?;
    Ok(repaired)
}

/// Makes the repository one that can be opened: HEAD, configuration, and the file that says what the store is; returns what was put back.
pub fn prepare(places: &Places) -> Result<Witnessed> {
    places.must_be_within()?;
    let witnessed = witness::heal_files(places)?;
    let (_, config) = Git::open(&places.git_dir)?;
    Store::mend_format(&places.configured_store(&config))?;
    Ok(witnessed)
}

/// Gives up a damaged git index: one that is missing is made from HEAD.
fn mend_index(repo: &Repo) -> Result<()> {
    let is_bad = match Index::read(&repo.index_path()) {
        Err(error) if error.kind() == Kind::Corrupt => true,
        Err(error) => return Err(error),
        Ok(index) => repo.is_index_lost() || repo.is_index_stale(&index),
    };
    if is_bad {
        durable::remove(&repo.index_path())?;
        durable::remove(&repo.places.state.join(INDEX_NOTE))?;
    }
    Ok(())
}

/// Takes missing objects, and what they lead to, from what was put aside and from the sources; returns how many came from these.
///
/// Of what was put aside earlier nothing else comes back: it may have been removed since.
fn mend_objects(repo: &Repo, sources: &[Source], progress: &Progress) -> Result<usize> {
    let mut n_found = 0;
    let aside = Salvage::open(&repo.places.state)?;
    for _ in 0..MAX_ROUNDS {
        let missing = missing_objects(repo)?;
        if missing.is_empty() {
            break;
        }
        let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
        copy_with_all_below(&missing, &|oid| aside.find(oid), &repo.objects, &pack)?;
        let n_own = pack.n_objects();
        for source in sources {
            match source {
                Source::Git(objects) => {
                    copy_with_all_below(&missing, &|oid| objects.find(oid).ok().flatten(), &repo.objects, &pack)?;
                }
                Source::Files(files) => {
                    files.for_each(progress, &mut |file| offer_blobs(&repo.settings, file, &missing, &pack, progress))?;
                }
                Source::Store(_) => (),
            }
        }
        let n_new = pack.n_objects();
        pack.finish()?.map_or(Ok(()), Kept::release)?;
        repo.objects.refresh();
        n_found += n_new - n_own;
        if n_new == 0 {
            break;
        }
    }
    Ok(n_found)
}

/// Each round finds what the objects of the last one lead to.
const MAX_ROUNDS: usize = 100;

/// Returns the objects that something refers to and that are not here, as far as git can tell: what a missing tree leads to it can't.
fn missing_objects(repo: &Repo) -> Result<HashSet<Oid>> {
    let output = repo.git.output(&["fsck", "--connectivity-only", "--no-dangling", "--no-progress"], b"")?;
    let said = [output.stdout, output.stderr].concat();
    let words = said.split(|b| !b.is_ascii_hexdigit()).filter(|word| word.len() == 40);
    let named = words.filter_map(|word| Oid::from_hex(word).ok());
    let of_refs = repo.witnessed.open.iter().flat_map(|found| found.wanted());
    Ok(named.chain(of_refs).filter(|oid| !oid.is_null() && !matches!(repo.objects.find(oid), Ok(Some(_)))).collect())
}

/// Finds an object in a source; what cannot be read there is not there.
type Find<'a> = &'a dyn Fn(&Oid) -> Option<(ObjectKind, Vec<u8>)>;

/// Copies `wanted` from where `find` finds it, and all that is missing below.
fn copy_with_all_below(wanted: &HashSet<Oid>, find: Find<'_>, target: &Objects, pack: &PackWriter<'_>) -> Result<()> {
    let mut queue: Vec<Oid> = wanted.iter().copied().collect();
    let mut seen: HashSet<Oid> = wanted.clone();
    while let Some(oid) = queue.pop() {
        let Some((kind, content)) = find(&oid) else { continue };
        pack.put(kind, &content)?;
        let below: Vec<Oid> = match kind {
            ObjectKind::Tree => {
                decode_tree(&content).map(|tree| tree.into_iter().map(|entry| entry.oid).collect()).unwrap_or_default()
            }
            ObjectKind::Commit => CommitData::decode(&content)
                .map(|commit| commit.parents.into_iter().chain([commit.tree]).collect())
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        queue.extend(below.into_iter().filter(|oid| !target.contains(oid) && seen.insert(*oid)));
    }
    Ok(())
}

/// Stores a file's content, or its chunk index, if that is one of the missing blobs.
fn offer_blobs(
    settings: &Settings,
    file: &File,
    missing: &HashSet<Oid>,
    pack: &PackWriter<'_>,
    progress: &Progress,
) -> Result<Taken> {
    let (oid, content) = match read_blob(settings, file, progress) {
        Ok(blob) => blob,
        Err(error) => return Ok(Err(error)),
    };
    if missing.contains(&oid) {
        pack.blob(&content)?;
    }
    Ok(Ok(()))
}

/// Returns the blob that a file is stored as; nothing is stored.
fn read_blob(settings: &Settings, file: &File, progress: &Progress) -> Result<(Oid, Vec<u8>)> {
    let size = file.metadata()?.len();
    let content = if size < settings.threshold {
        read_all(file, size)?
    } else {
        let holes = holes(file, size)?;
        cut_file(file, size, &holes, &settings.chunker, ChunkSink::Discard, settings.n_threads, progress)?.encode()
    };
    Ok((object_id(ObjectKind::Blob, &content)?, content))
}

fn read_all(file: &File, size: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::with_capacity(size as usize);
    file.take(size).read_to_end(&mut content)?;
    Ok(content)
}

/// Takes missing chunks from the sources; returns how many.
fn mend_chunks(repo: &Repo, sources: &[Source], progress: &Progress) -> Result<usize> {
    let mut n_found = 0;
    for _ in 0..MAX_ROUNDS {
        let (missing, specs) = missing_chunks(repo)?;
        if missing.is_empty() || sources.is_empty() {
            break;
        }
        let writer = repo.store.writer(WriteOptions { level: repo.settings.level })?;
        for source in sources {
            match source {
                Source::Store(store) => take_chunks(store, &missing, &writer, progress)?,
                Source::Files(files) => {
                    files.for_each(progress, &mut |file| offer_chunks(file, &missing, &specs, &writer, progress))?;
                }
                Source::Git(_) => (),
            }
        }
        let stats = writer.finish()?;
        n_found += stats.new_chunks as usize;
        if stats.new_chunks == 0 {
            break;
        }
    }
    Ok(n_found)
}

/// Stores those of the missing chunks that a store can give; of the others one warning tells.
fn take_chunks(store: &Store, missing: &HashSet<ChunkId>, writer: &Writer, progress: &Progress) -> Result<()> {
    let mut unreadable = None;
    let mut missing: Vec<&ChunkId> = missing.iter().collect();
    // The first one tells of all, each time the same.
    missing.sort_unstable();
    for id in missing {
        match store.read(id, MAX_CHUNK) {
            Ok(bytes) => drop(writer.put(*id, &bytes)?),
            Err(error) if error.kind() == Kind::NotFound => (),
            Err(error) => unreadable = unreadable.or(Some(error)),
        }
    }
    if let Some(error) = unreadable {
        pass_over(store.dir(), &error, progress);
    }
    Ok(())
}

/// Cuts a file in every way that is in use, and stores the chunks that are missing, as far as it can be read.
fn offer_chunks(
    file: &File,
    missing: &HashSet<ChunkId>,
    specs: &HashSet<String>,
    writer: &Writer,
    progress: &Progress,
) -> Result<Taken> {
    let has_failed = AtomicBool::new(false);
    let mut taken = Ok(());
    for spec in specs {
        let spec: ChunkerSpec = spec.parse().map_err(|_| Error::new(Kind::Bug, "BUG: a chunker does not read its own name"))?;
        let sink = ChunkSink::Wanted { wanted: missing, writer, has_failed: &has_failed };
        let cut = || {
            let size = file.metadata()?.len();
            cut_file(file, size, &holes(file, size)?, &spec, sink, 1, progress)
        };
        match cut() {
            Err(error) if has_failed.load(Ordering::Relaxed) => return Err(error),
            cut => taken = taken.and(cut.map(drop)),
        }
    }
    Ok(taken)
}

/// Returns the chunks that large files lack, as far as their lists can be read, and the chunkers that cut these files.
fn missing_chunks(repo: &Repo) -> Result<(HashSet<ChunkId>, HashSet<String>)> {
    let (mut missing, mut specs) = (HashSet::new(), HashSet::new());
    for_each_index(repo, &mut |_, index| {
        let Ok(index) = index else { return Ok(()) };
        let before = missing.len();
        let walked = read::for_each_id(&repo.chunks, &index, &mut |id| {
            if !repo.store.contains(&id)? {
                missing.insert(id);
            }
            Ok(())
        });
        if missing.len() > before {
            specs.insert(index.chunker.to_string());
        }
        match walked {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => Ok(()),
            other => other,
        }
    })?;
    Ok((missing, specs))
}

impl Files {
    /// Hands every regular file, but for those of a repository, to `take`; of what cannot be read a warning tells.
    fn for_each(&self, progress: &Progress, take: &mut dyn FnMut(&File) -> Result<Taken>) -> Result<()> {
        match &self.name {
            Some(name) => self.take_one(name, progress, take),
            None => self.take_all(progress, take),
        }
    }

    fn take_all(&self, progress: &Progress, take: &mut dyn FnMut(&File) -> Result<Taken>) -> Result<()> {
        let entries = self.dir.entries().inspect_err(|error| pass_over(&self.path, error, progress));
        for entry in entries.unwrap_or_default() {
            let path = self.path.join(OsStr::from_bytes(&entry.name));
            match self.dir.stat(&entry.name).map(|stat| stat.map(|stat| stat.kind)) {
                Ok(Some(FileKind::Dir)) if entry.name != b".git" => match self.dir.open_dir(&entry.name) {
                    Ok(dir) => Self { dir, path, name: None }.take_all(progress, take)?,
                    Err(error) => pass_over(&path, &error, progress),
                },
                Ok(Some(FileKind::File)) => self.take_one(&entry.name, progress, take)?,
                Ok(_) => (),
                Err(error) => pass_over(&path, &error, progress),
            }
        }
        Ok(())
    }

    fn take_one(&self, name: &[u8], progress: &Progress, take: &mut dyn FnMut(&File) -> Result<Taken>) -> Result<()> {
        let taken = match self.dir.open_file(name) {
            Ok(file) => take(&file)?,
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            pass_over(&self.path.join(OsStr::from_bytes(name)), &error, progress);
        }
        Ok(())
    }
}

/// Tells of what a source did not give.
fn pass_over(path: &Path, error: &Error, progress: &Progress) {
    progress
        .warn(path.as_os_str().as_bytes(), format!("not all of it can be read; what is lost is looked for elsewhere: {error:#}"));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::chunk::Chunker;
    use crate::store::WriteOptions;

    fn repository() -> (tempfile::TempDir, Repo) {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_directory(dir.path());
        Repo::init(&places, "main").unwrap();
        let repo = Repo::open(places).unwrap();
        (dir, repo)
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_from_a_pack_that_cannot_be_written() {
        let (dir, repo) = repository();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..200_000u32).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..4].to_vec()).collect();
        fs::write(&path, &content).unwrap();
        // Opened so that it has a size and cannot be read, as where the disk fails.
        let unreadable = File::options().append(true).open(&path).unwrap();
        let progress = Progress::default();
        for threshold in [1, u64::MAX] {
            let settings = Settings { threshold, ..repo.settings.clone() };
            let (oid, _) = read_blob(&settings, &File::open(&path).unwrap(), &progress).unwrap();
            let missing = HashSet::from([oid]);
            let pack = PackWriter::new(&repo.places.git_dir, &repo.objects).unwrap();
            assert!(offer_blobs(&settings, &unreadable, &missing, &pack, &progress).unwrap().is_err());
            assert_eq!(pack.n_objects(), 0);
            offer_blobs(&settings, &File::open(&path).unwrap(), &missing, &pack, &progress).unwrap().unwrap();
            assert_eq!(pack.n_objects(), 1);
        }
        let missing = HashSet::from([object_id(ObjectKind::Blob, &content).unwrap()]);
        let settings = Settings { threshold: u64::MAX, ..repo.settings.clone() };
        let pack = PackWriter::new(&repo.places.git_dir, &repo.objects).unwrap();
        fs::remove_dir_all(repo.places.git_dir.join("objects/pack")).unwrap();
        offer_blobs(&settings, &File::open(&path).unwrap(), &missing, &pack, &progress).unwrap_err();
        let writer = repo.store.writer(WriteOptions::default()).unwrap();
        let specs = HashSet::from([settings.chunker.to_string()]);
        assert!(offer_chunks(&unreadable, &HashSet::new(), &specs, &writer, &progress).unwrap().is_err());
        let (mut chunker, mut wanted, mut rest) = (Chunker::new(&settings.chunker), HashSet::new(), &content[..]);
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(chunker.cut(rest));
            wanted.insert(ChunkId::of(chunk));
            rest = after;
        }
        fs::remove_dir_all(repo.store.dir().join("tmp")).unwrap();
        offer_chunks(&File::open(&path).unwrap(), &wanted, &specs, &writer, &progress).unwrap_err();
    }

    #[test]
    fn the_files_after_one_that_cannot_be_read_are_looked_at_and_a_warning_tells_of_each() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let names = ["a", "b", "sub/c"];
        names.iter().for_each(|name| fs::write(dir.path().join(name), name).unwrap());
        let files = |name: Option<&str>| {
            let name = name.map(|name| name.as_bytes().to_vec());
            Files { dir: Dir::open(dir.path()).unwrap(), path: dir.path().to_owned(), name }
        };
        let progress = Progress::default();
        let (mut n_looks, failed) = (0, || Error::new(Kind::Io, "input/output error"));
        // A repair looks at a source more than once.
        for _ in 0..2 {
            let mut look = |_: &File| {
                n_looks += 1;
                Ok(Err(failed()))
            };
            files(None).for_each(&progress, &mut look).unwrap();
            files(Some("gone")).for_each(&progress, &mut look).unwrap();
        }
        assert_eq!(n_looks, 6);
        let warnings = progress.take_warnings();
        let paths: Vec<_> = warnings.iter().map(|warning| OsStr::from_bytes(&warning.path).to_owned()).collect();
        assert_eq!(paths, ["a", "b", "gone", "sub/c"].map(|name| dir.path().join(name).into_os_string()));
        assert_eq!(warnings[0].message, "not all of it can be read; what is lost is looked for elsewhere: input/output error");
        files(None).for_each(&progress, &mut |_| Err(failed())).unwrap_err();
        assert_eq!(progress.take_warnings(), []);
    }
}
