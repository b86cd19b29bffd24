//! A repository with its work tree, its chunk store and its state: what every verb works on.
//!
//! [`scan`] looks at the work tree, [`stage`] records what it found, [`tree`] reads it back, [`restore`] writes it to the disk, [`check`] verifies
//! and [`gc`] cleans up.

pub mod attributes;
pub mod branch;
pub mod changes;
pub mod check;
mod content;
pub mod diff;
pub mod drop;
pub mod enrolled;
pub mod exclude;
pub mod gc;
mod guard;
pub mod hand_over;
pub mod holders;
mod jobs;
mod laid;
mod lifted;
pub mod maintain;
pub mod mend;
mod pathset;
pub mod next;
pub mod preimage;
pub mod releases;
pub mod remotes;
pub mod remove;
pub mod reports;
pub mod restore;
pub mod roots;
pub mod scan;
pub mod seen;
pub mod stage;
pub mod status;
pub mod streamed;
pub mod sync;
pub mod tree;
pub mod unowned;
mod verified;
pub mod whereis;
pub mod wip;
pub mod witness;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::chunk::ChunkerSpec;
use crate::durable::{self, FileStamp, Lock};
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::file::index::ChunkIndex;
use crate::file::read;
use crate::file::source::ChunkSource;
use crate::git::{
    CachedStat, Config, Git, Index, IndexBuilder, IndexEntry, IndexStamp, Kept, NewIndex, Objects, Oid, PackWriter, Written,
    name, write_tree,
};
use crate::metadata::DirMetadata;
use crate::safepath::{self, Dir, FileKind};
use crate::store::{Local, MIN_QUOTA, Referenced, Store, WriteOptions};
use crate::threads;

pub use attributes::Attributes;
use restore::{AsStored, Laying};
use witness::Witnessed;

/// Where the parts of one instance are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The git repository.
    pub git_dir: PathBuf,
    /// The directory that is under control.
    pub work_tree: PathBuf,
    /// The chunk store.
    pub store: PathBuf,
    /// Whether the caller named the store, so that the configuration does not count.
    pub is_store_named: bool,
    /// What concerns this host alone: locks, logs, the applied state.
    pub state: PathBuf,
}

impl Places {
    /// Returns the places of a directory that has its repository in `.git`.
    pub fn of_directory(dir: &Path) -> Self {
        Self::apart(&dir.join(".git"), dir)
    }

    /// Returns the places of a repository that lies apart from its work tree.
    pub fn apart(git_dir: &Path, work_tree: &Path) -> Self {
        let ours = git_dir.join("devops");
        Self {
            git_dir: git_dir.into(),
            work_tree: work_tree.into(),
            store: ours.join("store"),
            is_store_named: false,
            state: ours.join("state"),
        }
    }

    /// Returns the places of the system instance below `root`.
    pub fn system(root: &Path) -> Self {
        Self {
            git_dir: root.join("etc/git-devops/repo"),
            work_tree: root.into(),
            store: root.join("var/cache/git-devops"),
            is_store_named: false,
            state: root.join("var/lib/git-devops"),
        }
    }

    /// Returns the places of the repository that `start` lies in: the first `.git` of ours, or system instance, in it or above it.
    pub fn discover(start: &Path) -> Option<Self> {
        let both = |dir: &Path| [Self::of_directory(dir), Self::system(dir)];
        start.ancestors().flat_map(both).find(|places| durable::is_dir(&places.state) && durable::is_dir(&places.git_dir))
    }

    /// Says whether these are the places of a system instance.
    pub fn is_system(&self) -> bool {
        self.git_dir.ends_with("etc/git-devops/repo")
    }

    /// Returns the store that counts: the one that the caller named, else the one that the configuration names, else the default.
    pub fn configured_store(&self, config: &Config) -> PathBuf {
        match config.get("devops.store").filter(|_| !self.is_store_named) {
            Some(store) => PathBuf::from(String::from_utf8_lossy(store).into_owned()),
            None => self.store.clone(),
        }
    }

    /// Fails if a symlink leads one of our own places out of the root of another system: git, and whatever else takes a path, would follow it to what
    /// belongs to this machine.
    pub fn must_be_within(&self) -> Result<()> {
        if !self.is_system() || self.work_tree == Path::new("/") {
            return Ok(());
        }
        let what = || format!("cannot use '{}' as a root", self.work_tree.display());
        let root = Dir::open(&self.work_tree).context(what)?;
        self.own_paths().iter().try_for_each(|path| root.must_contain(path)).context(what)
    }

    /// Returns where our own directories are in the work tree, as far as they are.
    fn own_paths(&self) -> Vec<Vec<u8>> {
        use std::os::unix::ffi::OsStrExt;
        let mut places = vec![self.git_dir.clone(), self.store.clone(), self.state.clone()];
        if self.is_system() {
            places.extend(
                ["etc/git-devops", "etc/git-devops/trust", "var/lib/git-devops", "var/cache/git-devops"]
                    .map(|place| self.work_tree.join(place)),
            );
        }
        let inside = places.iter().filter_map(|place| place.strip_prefix(&self.work_tree).ok());
        inside.map(|path| path.as_os_str().as_bytes().to_vec()).filter(|path| !path.is_empty()).collect()
    }

    /// Returns what identifies our own directories: they are never stored and never written into.
    fn identities(&self) -> Vec<((u32, u32), u64)> {
        // Whom a host trusts is its own decision, and comes with no commit. Elsewhere that lies in the repository.
        let trust = if self.is_system() { self.work_tree.join("etc/git-devops/trust") } else { self.git_dir.clone() };
        [&self.git_dir, &self.store, &self.state, &trust].into_iter().filter_map(|path| safepath::identity(path)).collect()
    }
}

/// How an instance is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Files of this many bytes or more go to the chunk store.
    pub threshold: u64,
    /// How they are cut, unless an attribute says otherwise.
    pub chunker: ChunkerSpec,
    /// How hard is compressed: the level of zstd for chunks, and of deflate for git's objects.
    pub level: i32,
    /// Threads that work at once.
    pub n_threads: usize,
    /// What becomes of chunks that come from other hosts.
    pub policy: Policy,
}

/// What a host does with chunks that it gets from others: `docs/manual/storage.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It keeps them.
    Holder,
    /// It keeps those that it used last, in at most so many bytes.
    Cache(u64),
    /// It passes them on.
    None,
}

impl Policy {
    /// Reads the settings `devops.policy` and `devops.quota`.
    fn decode(policy: Option<&str>, quota: Option<&str>) -> Result<Self> {
        let wrong = |what: String| Err(Error::new(Kind::Usage, what));
        let bytes = match quota.map(|text| (text, bytes_of(text))) {
            Some((_, Some(bytes))) if bytes >= MIN_QUOTA => Some(bytes),
            Some((text, _)) => {
                return wrong(format!("setting 'devops.quota' is '{text}'; it must be a number of bytes, 1M or more, as '20G'"));
            }
            None => None,
        };
        match (policy.unwrap_or("holder"), bytes) {
            ("holder", _) => Ok(Self::Holder),
            ("none", _) => Ok(Self::None),
            ("cache", Some(bytes)) => Ok(Self::Cache(bytes)),
            ("cache", None) => {
                wrong("setting 'devops.policy' is 'cache', and 'devops.quota' is missing; set it, as '20G'".into())
            }
            (other, _) => wrong(format!("setting 'devops.policy' is '{other}'; it must be 'holder', 'cache' or 'none'")),
        }
    }
}

/// Reads a number of bytes, of KiB (`k`), MiB (`M`), GiB (`G`) or TiB (`T`).
fn bytes_of(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse::<u64>().ok()?.checked_mul(1 << shift)).flatten()
}

/// The smallest threshold that makes sense, in bytes: below it the chunk index would be longer than the file.
const MIN_THRESHOLD: u64 = 4096;

/// The threshold where none is set, in bytes.
pub const DEFAULT_THRESHOLD: u64 = 128 << 10;

/// Above this no file is taken for small, in bytes: a small file is read at once.
const MAX_THRESHOLD: u64 = 16 << 20;

impl Settings {
    fn read(config: &Config) -> Result<Self> {
        let text = |key: &str| config.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
        let number = |key: &str, default: u64, range: std::ops::RangeInclusive<u64>| match text(key) {
            None => Ok(default),
            Some(value) => value.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| {
                let (from, to) = range.into_inner();
                Error::new(Kind::Usage, format!("setting '{key}' is '{value}'; it must be a number from {from} to {to}"))
            }),
        };
        let chunker = match text("devops.chunker") {
            Some(spec) => spec.parse().context(|| "setting 'devops.chunker' is wrong")?,
            None => ChunkerSpec::default(),
        };
        let n_cores = threads::n_processors() as u64;
        Ok(Self {
            threshold: number("devops.threshold", DEFAULT_THRESHOLD, MIN_THRESHOLD..=MAX_THRESHOLD)?,
            chunker,
            level: number("devops.level", 1, 1..=19)? as i32,
            n_threads: number("devops.threads", n_cores.min(8), 1..=64)? as usize,
            policy: Policy::decode(text("devops.policy").as_deref(), text("devops.quota").as_deref())?,
        })
    }
}

/// So often a look at the index is made again while others replace it.
const LOOKS: usize = 5;

/// The file in the state that holds the stamp of the last index we wrote.
const INDEX_NOTE: &str = "index-checksum";

/// What we know of the index that we wrote last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct IndexNote {
    stamp: IndexStamp,
    tree: Option<Oid>,
}

impl IndexNote {
    /// Returns checksum, time and tree (zeros for none), and 12 bytes of the BLAKE3 of these, so that a note that rotted is none.
    fn encode(&self) -> Vec<u8> {
        let (seconds, nanos) = self.stamp.mtime;
        let tree = self.tree.unwrap_or(Oid::null(gix_hash::Kind::Sha1));
        let body = [&self.stamp.checksum[..], &seconds.to_be_bytes(), &(nanos as u32).to_be_bytes(), tree.as_slice()].concat();
        [&body[..], &blake3::hash(&body).as_bytes()[..12]].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (checksum, rest) = bytes.split_first_chunk()?;
        let (seconds, rest) = rest.split_first_chunk()?;
        let (nanos, rest) = rest.split_first_chunk()?;
        let tree = Some(Oid::try_from(rest.get(..20)?).ok()?).filter(|tree| !tree.is_null());
        let mtime = (i64::from_be_bytes(*seconds), u32::from_be_bytes(*nanos).into());
        let note = Self { stamp: IndexStamp { checksum: *checksum, mtime }, tree };
        (note.encode() == bytes).then_some(note)
    }
}

/// An open repository.
pub struct Repo {
    /// Where its parts are.
    pub places: Places,
    /// How it is set up.
    pub settings: Settings,
    /// Its configuration; every key was checked.
    pub config: Config,
    /// The git program, on this repository.
    pub git: Git,
    /// Its objects.
    pub objects: Objects,
    /// The chunks that it holds.
    pub store: Store,
    /// All chunks that it can have: of this host, and, where [`remotes::reach`] was called, of others.
    pub chunks: ChunkSource,
    /// What of HEAD, configuration and refs was not as it was left when the repository was opened.
    pub witnessed: Witnessed,
    /// Who knows what files hold that are stored as templates, or encrypted; [`AsStored`] until somebody says otherwise.
    pub laying: Arc<dyn Laying + Send>,
    /// The index that was read last, and the file that it came from.
    last_index: Mutex<Option<(FileStamp, Arc<Index>)>>,
}

impl Repo {
    /// Makes a repository with an empty store at `places`; what is there already stays as it is.
    ///
    /// A `.git` that is not ours is refused. A run that was cut short is simply repeated.
    pub fn init(places: &Places, branch: &str) -> Result<()> {
        places.must_be_within()?;
        let is_ours = durable::is_dir(&places.state);
        if is_ours && witness::is_known(&places.state) {
            witness::heal_files(places)?;
        }
        let has_head = durable::is_there(&places.git_dir.join("HEAD"));
        if has_head && !is_ours {
            let message = format!(
                "'{}' is a git repository of its own; name another place with --git-dir, or move it away first",
                places.git_dir.display()
            );
            return Err(Error::new(Kind::Refused, message));
        }
        durable::create_private_dir(&places.git_dir)?;
        if !has_head {
            durable::create_private_dir(&places.state)?;
        }
        let lock = Lock::exclusive(&places.state.join("lock"))?;
        if !has_head {
            Git::init(&places.git_dir, branch)?;
        }
        let (git, config) = Git::open(&places.git_dir)?;
        git.heal_stale_locks(&lock)?;
        enrolled::clear_leftovers(&places.state, &lock)?;
        let mut places = places.clone();
        places.store = places.configured_store(&config);
        // Before the store's list names us: whoever reads it looks for our store where the configuration says.
        if places.is_store_named {
            git.set_config("devops.store", &places.store.to_string_lossy())?;
        }
        durable::create_private_dir(&places.store)?;
        Store::create(&places.store)?;
        enrolled::enrol(&places)?;
        durable::sync_filesystem(&places.git_dir)?;
        witness::begin(&places, &lock)
    }

    /// Opens the repository at `places`; the store that its configuration names counts, if it names one.
    ///
    /// HEAD, configuration and refs that are not as they were left are put back where the witnesses agree, which [`Repo::witnessed`] tells; where they
    /// do not, that is an error.
    pub fn open(places: Places) -> Result<Self> {
        let repo = Self::open_to_check(places)?;
        repo.witnessed.must_be_settled()?;
        Ok(repo)
    }

    /// Opens the repository like [`Repo::open`], but also where HEAD or refs are in doubt.
    pub fn open_to_check(places: Places) -> Result<Self> {
        places.must_be_within()?;
        let is_there = durable::is_dir(&places.state)
            && (durable::is_there(&places.git_dir.join("HEAD")) || witness::is_known(&places.state));
        if !is_there {
            let message = format!("'{}' is not a repository of git-devops; make one with 'gdo init'", places.git_dir.display());
            return Err(Error::new(Kind::NotFound, message));
        }
        let mut places = places;
        places.git_dir = std::path::absolute(&places.git_dir)?;
        let mut witnessed = witness::heal_files(&places)?;
        let (git, config) = Git::open(&places.git_dir)?;
        places.store = places.configured_store(&config);
        let settings = Settings::read(&config)?;
        let objects = Objects::open(&places.git_dir)?;
        witness::heal_refs(&places, &objects, &mut witnessed)?;
        let local = Local::open(&places.store)?;
        let (store, chunks) = (local.store.clone(), ChunkSource::of(local));
        let git = git.with_work_tree(&places.work_tree);
        Ok(Self {
            places,
            settings,
            config,
            git,
            objects,
            store,
            chunks,
            witnessed,
            laying: Arc::new(AsStored),
            last_index: Mutex::default(),
        })
    }

    /// Takes the lock that every change of this instance needs, and clears away what a run that was killed left of git's own locks.
    pub fn lock(&self) -> Result<Lock> {
        let lock = Lock::exclusive(&self.places.state.join("lock"))?;
        lock.share_with_children()?;
        self.git.heal_stale_locks(&lock)?;
        enrolled::clear_leftovers(&self.places.state, &lock)?;
        Ok(lock)
    }

    /// Returns the git index, which is read where it is another file than the last time; one that is missing is made from HEAD, as if everything had to
    /// be looked at anew.
    pub fn index(&self) -> Result<Arc<Index>> {
        // Before it is read: of a file that takes its place meanwhile the next call sees that it is another one.
        let Some(now) = durable::stamp(&self.index_path()) else { return self.read_index().map(Arc::new) };
        let mut last = self.last_index.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, index)) = last.as_ref().filter(|(stamp, _)| *stamp == now) {
            return Ok(Arc::clone(index));
        }
        *last = None;
        let index = Arc::new(self.read_index()?);
        // One that is doubted may be noted a moment later, when somebody who writes it has come to that.
        *last = (!index.is_doubted()).then(|| (now, Arc::clone(&index)));
        Ok(index)
    }

    /// Gives the memory of the index back that [`Self::index`] keeps; the next call reads it again.
    pub fn forget_index(&self) {
        *self.last_index.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn read_index(&self) -> Result<Index> {
        let path = self.index_path();
        match self.head()? {
            Some(head) if !durable::is_there(&path) => Ok(self.index_of(&self.objects.commit(&head)?.tree)?.of_no_file()),
            _ => {
                let mut index = Index::read(&path)?;
                if self.is_index_stale(&index) {
                    let message = format!(
                        "index '{}' is not the one that was written last, though nobody wrote it; 'gdo check --repair' makes it anew from HEAD",
                        path.display()
                    );
                    return Err(Error::new(Kind::Corrupt, message));
                }
                match self.noted_index().filter(|noted| noted.stamp.checksum == index.stamp().checksum) {
                    Some(noted) => index = index.with_tree(noted.tree),
                    None => index.doubt(),
                }
                Ok(index)
            }
        }
    }

    /// Looks at the index without the lock: what only this index names may go as soon as another one takes its place, and a look that fails for that
    /// is made again with the new one.
    ///
    /// Fails with [`Kind::Locked`] if the index is replaced faster than anybody can look at it.
    pub fn with_index<T>(&self, mut look: impl FnMut(&Index) -> Result<T>) -> Result<T> {
        for _ in 0..LOOKS {
            let index = self.index()?;
            match look(&index) {
                Err(_) if self.index()?.stamp() != index.stamp() => {}
                looked => return looked,
            }
        }
        let message =
            format!("index '{}' is replaced again and again; try again when others are done", self.index_path().display());
        Err(Error::new(Kind::Locked, message))
    }

    /// Replaces the git index as [`NewIndex::write`] does, and notes that it is ours, which a doubted one is not.
    pub fn write_index(&self, index: &NewIndex<'_>) -> Result<Written> {
        self.forget_index();
        let written = index.write(&self.places.git_dir)?;
        let note = IndexNote { stamp: written.stamp, tree: written.tree };
        // Whoever is killed before this line only has to look at everything once more.
        durable::publish(&self.places.state.join(INDEX_NOTE), &note.encode(), 0o600)?;
        Ok(written)
    }

    /// Returns what we noted of the last index that we wrote.
    ///
    /// Stock git takes a file for clean whose content is, and notes its times: an index that git wrote says nothing about owners and modes.
    fn noted_index(&self) -> Option<IndexNote> {
        IndexNote::decode(&durable::read(&self.places.state.join(INDEX_NOTE)).ok()?)
    }

    /// Says whether there is no index, though we noted one.
    fn is_index_lost(&self) -> bool {
        !durable::is_there(&self.index_path()) && self.noted_index().is_some()
    }

    /// Says whether the index is another than the one that we noted, but as old to the nanosecond: then no program wrote it.
    fn is_index_stale(&self, index: &Index) -> bool {
        let now = index.stamp();
        self.noted_index().is_some_and(|noted| noted.stamp.mtime == now.mtime && noted.stamp.checksum != now.checksum)
    }

    pub(crate) fn index_of(&self, tree: &Oid) -> Result<Index> {
        let mut index = IndexBuilder::default();
        let has_empty = self.add_tree(tree, b"", &mut index)?;
        // No entry tells of an empty directory, which git never writes.
        Ok(index.build().with_tree((!has_empty).then_some(*tree)))
    }

    /// Adds all files of a tree, whose order is that of the index; returns whether there is an empty directory in it.
    fn add_tree(&self, tree: &Oid, dir: &[u8], index: &mut IndexBuilder) -> Result<bool> {
        let entries = self.objects.tree(tree)?;
        let mut has_empty = entries.is_empty() && !dir.is_empty();
        for entry in entries {
            let path = scan::join(dir, &entry.name);
            match entry.is_dir() {
                true => has_empty |= self.add_tree(&entry.oid, &path, index)?,
                false => index.push(&IndexEntry {
                    path: &path,
                    oid: entry.oid,
                    mode: entry.mode,
                    stat: CachedStat::default(),
                    skip_worktree: false,
                    intent_to_add: false,
                })?,
            }
        }
        Ok(has_empty)
    }

    /// Returns the path of the git index.
    pub fn index_path(&self) -> PathBuf {
        self.places.git_dir.join("index")
    }

    /// Returns the commit that HEAD names, `None` before the first one.
    pub fn head(&self) -> Result<Option<Oid>> {
        self.git.resolve_head()
    }

    /// Returns the tree of the commit that `rev` names.
    pub fn tree_of(&self, rev: &str) -> Result<Oid> {
        Ok(self.objects.commit(&self.git.resolve(rev)?)?.tree)
    }

    /// Returns the tree to restore from: that of `rev`, or, without one, that of the index.
    pub fn source_tree(&self, rev: Option<&str>) -> Result<Oid> {
        match rev {
            Some(rev) => self.tree_of(rev),
            None => self.index_tree(),
        }
    }

    /// Writes the tree of the index into the repository, if it is not there yet, and returns it.
    fn index_tree(&self) -> Result<Oid> {
        let index = self.index()?;
        let pack = PackWriter::new(&self.places.git_dir, &self.objects)?;
        let tree = write_tree(NewIndex::of(&index).files(), &pack)?;
        publish_for_a_look(pack)?;
        Ok(tree)
    }

    /// Says whether the index has anything at or below `path`.
    pub fn is_stored(&self, index: &Index, path: &[u8]) -> bool {
        let is_node = || {
            let (dir, entry_name) = scan::split(path);
            let recorded =
                index.lookup(&name::meta_path(dir)).map(|position| self.read_dir_metadata(&index.entry(position).oid, dir));
            recorded.and_then(Result::ok).is_some_and(|recorded| recorded.entries.contains_key(entry_name))
        };
        index.lookup(&name::stored_path(path)).is_some()
            || scan::recorded_below(index, path).iter().any(|range| !range.is_empty())
            || is_node()
    }

    /// Keeps in the store what lies in the file `name` of `dir`, if that is one of those that are their own store; an error means that it must stay.
    fn spare(&self, referenced: &Referenced, dir: &Dir, name: &[u8]) -> Result<()> {
        if referenced.is_empty() || dir.stat(name)?.is_none_or(|stat| stat.kind != FileKind::File) {
            return Ok(());
        }
        let options = WriteOptions { level: self.settings.level };
        let kept = referenced.spare(&dir.open_file(name)?, self.chunks.local().references(), &self.store, options);
        kept.map_err(|error| match error.kind() {
            Kind::NoSpace => error.with_kind(Kind::Refused).wrap(
                "it is its own store, and there is no room to keep elsewhere what lies in it; make room for the chunk store, or move the file out of \
                 the way yourself: what no other host got before is lost then",
            ),
            _ => error.wrap("it is its own store, and what lies in it cannot be kept elsewhere"),
        })
    }

    /// Returns the length of a stored file's content in bytes; `None` for what has none.
    pub fn content_size(&self, item: &tree::Item) -> Result<Option<u64>> {
        let (Some(oid), FileKind::File) = (item.content, item.metadata.kind) else { return Ok(None) };
        let blob = self.objects.blob(&oid)?;
        let is_index = ChunkIndex::is_index(&blob);
        Ok(Some(if is_index { ChunkIndex::decode(&blob)?.size } else { blob.len() as u64 }))
    }

    /// Returns the chunk index that a blob is; `None` if the blob is a small file's content.
    pub fn chunk_index(&self, blob: &Oid) -> Result<Option<ChunkIndex>> {
        let blob = self.objects.blob(blob)?;
        match ChunkIndex::is_index(&blob) {
            true => ChunkIndex::decode(&blob).map(Some).map_err(|error| error.or_refused(Reason::Index)),
            false => Ok(None),
        }
    }

    /// Writes the content of the file at `path` in the commit `rev` to `out`; memory does not grow with the file.
    pub fn cat(&self, rev: &str, path: &[u8], out: &mut dyn Write) -> Result<()> {
        let shown = scan::shown(path);
        let (dir, entry_name) = scan::split(path);
        let node = tree::StoredDir::root(self, self.tree_of(rev)?)?.descend(self, dir)?;
        let item = node.map(|node| node.list(self)).transpose()?.and_then(|mut listing| listing.files.remove(entry_name));
        let item = item.ok_or_else(|| Error::new(Kind::NotFound, format!("'{shown}' is not a file in '{rev}'")))?;
        let Some(oid) = item.content else {
            return Err(Error::new(Kind::Refused, format!("'{shown}' is a node and has no content")));
        };
        let blob = self.objects.blob(&oid)?;
        let what = || format!("cannot write out '{shown}'");
        if item.metadata.kind == FileKind::File && ChunkIndex::is_index(&blob) {
            let index = ChunkIndex::decode(&blob).map_err(|error| error.or_refused(Reason::Index)).context(what)?;
            return read::stream(&self.chunks, &index, out).context(what);
        }
        out.write_all(&blob).context(what)
    }

    /// Writes the content of a stored file to `path`, a file of our own that is made, for our eyes only; not durable.
    pub(crate) fn write_blob(&self, oid: &Oid, path: &Path) -> Result<()> {
        let blob = self.objects.blob(oid)?;
        durable::empty_unsynced(path)?;
        let mut file = durable::open_to_append(path)?;
        match ChunkIndex::is_index(&blob) {
            true => read::stream(
                &self.chunks,
                &ChunkIndex::decode(&blob).map_err(|error| error.or_refused(Reason::Index))?,
                &mut file,
            ),
            false => Ok(file.write_all(&blob)?),
        }
    }

    /// Reads the metadata file `oid` of the directory `dir`.
    pub fn read_dir_metadata(&self, oid: &Oid, dir: &[u8]) -> Result<DirMetadata> {
        let what = || format!("cannot read the metadata of directory '{}' (object {oid})", scan::shown(dir));
        DirMetadata::decode(&self.objects.blob(oid).context(what)?).map_err(|error| error.or_refused(Reason::Meta)).context(what)
    }

    /// Returns the blob at `path` in a tree.
    pub fn blob_in(&self, tree: &Oid, path: &[u8]) -> Result<Option<Oid>> {
        let mut tree = *tree;
        let mut components = path.split(|&b| b == b'/').peekable();
        while let Some(component) = components.next() {
            let Some(entry) = self.objects.tree(&tree)?.into_iter().find(|entry| entry.name == component) else {
                return Ok(None);
            };
            match components.peek() {
                None => return Ok((!entry.is_dir()).then_some(entry.oid)),
                Some(_) if entry.is_dir() => tree = entry.oid,
                Some(_) => return Ok(None),
            }
        }
        Ok(None)
    }
}

impl Repo {
    /// Lets git treat a pack as any other, now that a ref leads to what is in it, and puts packs together when there are many. The caller has the lock.
    fn let_go(&self, kept: Option<Kept>) -> Result<()> {
        let Some(kept) = kept else { return Ok(()) };
        kept.release()?;
        maintain::roll_up(self)
    }
}

/// Publishes objects that nothing will refer to, by a run that has no lock: one that begins meanwhile may take what it writes for a dead one's.
fn publish_for_a_look(pack: PackWriter) -> Result<()> {
    let published = pack.finish().and_then(|kept| kept.map_or(Ok(()), Kept::release));
    published.map_err(|error| match error.kind() {
        Kind::NotFound => error.with_kind(Kind::Locked).wrap("another run began meanwhile; try again when it is done"),
        _ => error,
    })
}

/// Runs what decodes the files of the state, what git prints and what a person gives, and is not public, on `data`.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    if let Ok(lifted) = lifted::decode(data) {
        assert_eq!(lifted::decode(&lifted::encode(&lifted)).unwrap(), lifted);
    }
    if let Some(identity) = enrolled::Identity::decode(data) {
        assert_eq!(enrolled::Identity::decode(&identity.encode()), Some(identity));
    }
    let _ = IndexNote::decode(data);
    let _ = status::RawChange::decode(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = next::Joining::decode(text);
        let _ = remotes::decode_host_keys(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::index::CachedStat;

    #[test]
    fn a_look_at_an_index_that_is_replaced_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_directory(dir.path());
        Repo::init(&places, "main").unwrap();
        let repo = Repo::open(places).unwrap();
        let stage = |index: &Index, n: usize| {
            let entry = scan::Staged {
                path: format!("{n}").into(),
                oid: Oid::from_bytes_or_panic(&[1; 20]),
                mode: 0o100_644,
                stat: CachedStat::default(),
            };
            repo.write_index(&NewIndex::new(index, vec![entry], &[]).unwrap()).unwrap();
        };
        stage(&repo.index().unwrap(), 0);
        let gone = || Error::new(Kind::NotFound, "gone");

        let mut n_entries = Vec::new();
        let looked = repo.with_index(|index| {
            n_entries.push(index.len());
            if index.len() == 1 {
                stage(index, 1);
                return Err(gone());
            }
            Ok(7)
        });
        assert_eq!((looked.unwrap(), n_entries), (7, vec![1, 2]));

        // What fails by itself is said as it is, and at once.
        let mut n_looks = 0;
        let looked = repo.with_index(|_| {
            n_looks += 1;
            Err::<(), _>(gone())
        });
        assert_eq!((looked.unwrap_err().kind(), n_looks), (Kind::NotFound, 1));

        let looked = repo.with_index(|index| {
            stage(index, index.len());
            Err::<(), _>(gone())
        });
        assert_eq!(looked.unwrap_err().kind(), Kind::Locked);
    }
}
