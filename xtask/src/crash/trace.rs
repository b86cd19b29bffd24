//! Stops a whole tree of processes at its Nth mutating system call.
//!
//! A seccomp filter hands the calls that can change a filesystem to a tracer (ptrace); all others run at full speed. Every process and thread that
//! the program starts inherits both, so that the calls are counted over the tree, in the order in which they happen. This is the only module of the
//! chores with `unsafe` code: fork, ptrace and one ioctl have no safe form.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use libc::{c_int, c_long, c_void, pid_t};

use crate::command::{Context, Failure, Result};
use crate::ensure;

/// What happens at the Nth call.
pub enum Strike<'a> {
    /// Nothing: the calls are only counted.
    Never,
    /// The closure is called, and then the whole tree is killed.
    Kill(&'a mut dyn FnMut() -> Result),
    /// The closure is called, and then the call is made: what was frozen there goes on.
    Freeze(&'a mut dyn FnMut() -> Result),
    /// The call fails with this error number; so do all later ones, if `for_good`.
    Fail {
        /// The error number.
        errno: i32,
        /// Whether all later calls fail too.
        for_good: bool,
    },
}

/// How a program is run.
pub struct Plan<'a, 's> {
    /// The number of the call, from 1.
    pub at: u64,
    /// What happens there.
    pub strike: Strike<'s>,
    /// Only writes to open files below this directory count.
    pub below: &'a Path,
    /// Whether fsync and its like do nothing and say that they did.
    pub without_sync: bool,
}

/// How it went.
#[derive(Debug)]
pub struct Traced {
    /// The exit code; `None` if the tree was killed by the plan, 128 + the signal's number after any other signal.
    pub code: Option<i32>,
    /// The mutating calls that were met.
    pub n_calls: u64,
    /// The call that was struck, with what it was about.
    pub struck: Option<String>,
}

/// Longer than any program under test takes, also with every call stopped.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `command` with an empty standard input and exactly the environment that was set on it; both outputs go to `output`.
///
/// The program must be named by an absolute path. Fails if it does not end within a minute: it hangs.
pub fn run(command: &Command, output: &File, plan: Plan) -> Result<Traced> {
    ensure!(cfg!(target_arch = "x86_64"), "the crash sweeps know the registers of x86-64 only");
    let image = Image::of(command)?;
    let child = image.start(output)?;
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watchdog = scope.spawn(move || {
            let is_late = is_done.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout);
            if is_late {
                kill_group(child);
            }
            is_late
        });
        let outcome =
            Tracer { plan, root: child, living: BTreeSet::from([child]), n_calls: 0, struck: None, code: None }.follow();
        drop(done);
        let is_late = watchdog.join().expect("BUG: the watchdog panicked");
        let traced = outcome?;
        ensure!(!is_late, "it hangs: not done after {} s, {} calls", DEADLINE.as_secs(), traced.n_calls);
        Ok(traced)
    })
}

/// Cuts the power of the filesystem that holds `dir`: nothing that is not on the disk yet will get there.
pub fn cut_power(dir: BorrowedFd) -> Result {
    /// `_IOR('X', 125, __u32)` of ext4 and xfs.
    const GOINGDOWN: libc::Ioctl = 0x8004_587d;
    const NO_LOG_FLUSH: u32 = 2;
    let how = NO_LOG_FLUSH;
    // SAFETY: the kernel reads four bytes at the pointer, which `how` has, during the call only.
    let result = unsafe { libc::ioctl(dir.as_raw_fd(), GOINGDOWN, std::ptr::from_ref(&how)) };
    check(c_long::from(result)).map(drop).context(|| "cannot cut the power")
}

/// All that the child needs between fork and exec, where nothing may be allocated.
struct Image {
    program: CString,
    args: Vec<CString>,
    environment: Vec<CString>,
    directory: CString,
    filter: Vec<libc::sock_filter>,
}

impl Image {
    fn of(command: &Command) -> Result<Self> {
        let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| Failure("a word has a NUL byte".into()));
        let program = text(command.get_program())?;
        let args = std::iter::once(command.get_program()).chain(command.get_args()).map(text).collect::<Result<_>>()?;
        let set = command.get_envs().filter_map(|(name, value)| Some([name.as_bytes(), b"=", value?.as_bytes()].concat()));
        let environment = set.map(|line| text(OsStr::from_bytes(&line))).collect::<Result<_>>()?;
        let directory = text(command.get_current_dir().ok_or("BUG: the program's directory is not set")?.as_os_str())?;
        Ok(Self { program, args, environment, directory, filter: filter() })
    }

    /// Starts the program as a tracee in a session of its own, with the filter on.
    fn start(&self, output: &File) -> Result<pid_t> {
        let empty = File::open("/dev/null")?;
        let (gate, opened) = io::pipe()?;
        let null_ended = |words: &[CString]| -> Vec<*const libc::c_char> {
            words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (args, environment) = (null_ended(&self.args), null_ended(&self.environment));
        let streams = [empty.as_raw_fd(), output.as_raw_fd(), output.as_raw_fd()];
        let filter = libc::sock_fprog { len: self.filter.len() as u16, filter: self.filter.as_ptr().cast_mut() };
        // SAFETY: until it is another program, the child calls only async-signal-safe functions, on memory that was prepared above
        // and stays valid because the child has a copy of it. It never returns from the block: either exec or _exit ends it.
        let child = unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::setsid();
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let mut byte = 0_u8;
                // Waits until the tracer has seized it.
                libc::read(gate.as_raw_fd(), std::ptr::from_mut(&mut byte).cast(), 1);
                for (number, stream) in streams.iter().enumerate() {
                    libc::dup2(*stream, number as c_int);
                }
                libc::umask(0o022);
                if libc::chdir(self.directory.as_ptr()) == 0
                    && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::from_ref(&filter)) == 0
                {
                    libc::execve(self.program.as_ptr(), args.as_ptr(), environment.as_ptr());
                }
                libc::_exit(127);
            }
            child
        };
        check(c_long::from(child)).context(|| "cannot fork")?;
        let options = libc::PTRACE_O_TRACESECCOMP
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEEXEC
            | libc::PTRACE_O_EXITKILL;
        let seized = ptrace(libc::PTRACE_SEIZE, child, 0, options as usize);
        if seized.is_err() {
            kill_group(child);
        }
        seized.context(|| "cannot trace the program")?;
        io::Write::write_all(&mut { opened }, b"x")?;
        Ok(child)
    }
}

struct Tracer<'a, 's> {
    plan: Plan<'a, 's>,
    root: pid_t,
    /// Every thread that was seen and not yet seen to end.
    living: BTreeSet<pid_t>,
    n_calls: u64,
    struck: Option<String>,
    code: Option<i32>,
}

impl Tracer<'_, '_> {
    /// Follows the tree until all of it has ended.
    fn follow(mut self) -> Result<Traced> {
        let mut failure = None;
        while let Some((thread, status)) = wait()? {
            if !libc::WIFSTOPPED(status) {
                self.living.remove(&thread);
                if thread == self.root && !self.is_killed() {
                    let signal = 128 + libc::WTERMSIG(status);
                    self.code = Some(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { signal });
                }
                continue;
            }
            self.living.insert(thread);
            let result = self.stopped(thread, status);
            if let Err(why) = result {
                // A tree that nobody follows any more would stand still for ever.
                self.kill_all();
                failure.get_or_insert(why);
            }
        }
        match failure {
            Some(why) => Err(why),
            None => Ok(Traced { code: self.code, n_calls: self.n_calls, struck: self.struck }),
        }
    }

    fn is_killed(&self) -> bool {
        self.struck.is_some() && matches!(self.plan.strike, Strike::Kill(_))
    }

    fn stopped(&mut self, thread: pid_t, status: c_int) -> Result {
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        if event == libc::PTRACE_EVENT_SECCOMP {
            self.call(thread)?;
        }
        // A stop that is not an event announces a signal, which is passed on.
        let passed_on = if event == 0 { signal as usize } else { 0 };
        resume(thread, passed_on)
    }

    fn call(&mut self, thread: pid_t) -> Result {
        let Some(mut registers) = registers(thread)? else { return Ok(()) };
        let call = Call::of(thread, &registers);
        if self.plan.without_sync && call.is_sync() {
            return call.skip(&mut registers, 0);
        }
        if !call.changes_something(self.plan.below) {
            return Ok(());
        }
        self.n_calls += 1;
        let is_it = self.n_calls == self.plan.at;
        if is_it {
            self.struck = Some(call.to_string());
        }
        match &mut self.plan.strike {
            Strike::Kill(before) if is_it => {
                let result = before();
                self.kill_all();
                result
            }
            Strike::Freeze(meanwhile) if is_it => meanwhile(),
            Strike::Fail { errno, for_good } if is_it || *for_good && self.struck.is_some() => {
                call.skip(&mut registers, -i64::from(*errno))
            }
            _ => Ok(()),
        }
    }

    fn kill_all(&self) {
        kill_group(self.root);
        for thread in &self.living {
            // SAFETY: sends a signal; touches no memory. A thread that has ended since is refused by the kernel, and nothing else in this
            // session can have its number before it was waited for.
            unsafe { libc::kill(*thread, libc::SIGKILL) };
        }
    }
}

/// A mutating call that is about to be made.
struct Call {
    thread: pid_t,
    number: c_long,
    args: [u64; 6],
}

impl Call {
    fn of(thread: pid_t, registers: &libc::user_regs_struct) -> Self {
        let r = registers;
        Self { thread, number: r.orig_rax as c_long, args: [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] }
    }

    fn name(&self) -> &'static str {
        CALLS.iter().find(|call| call.number == self.number).map_or("?", |call| call.name)
    }

    fn about(&self) -> About {
        CALLS.iter().find(|call| call.number == self.number).map_or(About::Other, |call| call.about)
    }

    fn is_sync(&self) -> bool {
        [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs, libc::SYS_sync].contains(&self.number)
    }

    /// Says whether the call can change a filesystem: pipes, devices and outputs elsewhere are none.
    fn changes_something(&self, below: &Path) -> bool {
        match self.about() {
            About::Data => self.file(0).is_some_and(|file| file.starts_with(below)),
            About::Open(path) => {
                let is_for_reading = self.number == libc::SYS_openat2
                    && self.memory(self.args[2], 8).is_some_and(|how| {
                        let flags = u64::from_ne_bytes(how.try_into().expect("BUG: eight bytes were read"));
                        flags & u64::from(WRITING) == 0
                    });
                let name = self.text(path).unwrap_or_default();
                !is_for_reading && !name.starts_with(b"/dev/") && !name.starts_with(b"/proc/")
            }
            About::File(_) | About::Path(_) | About::Other => true,
        }
    }

    /// Returns what the open file in argument `at` is called.
    fn file(&self, at: usize) -> Option<std::path::PathBuf> {
        std::fs::read_link(format!("/proc/{}/fd/{}", self.thread, self.args[at] as i32)).ok()
    }

    /// Returns the text that argument `at` points to.
    fn text(&self, at: usize) -> Option<Vec<u8>> {
        // A page may end behind it, so that only a part can be read.
        let bytes = self.memory(self.args[at], 256)?;
        Some(bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec())
    }

    fn memory(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        let memory = File::open(format!("/proc/{}/mem", self.thread)).ok()?;
        let n_read = std::os::unix::fs::FileExt::read_at(&memory, &mut bytes, address).ok()?;
        bytes.truncate(n_read);
        Some(bytes)
    }

    /// Makes the call return `result` without being made.
    fn skip(&self, registers: &mut libc::user_regs_struct, result: i64) -> Result {
        registers.orig_rax = u64::MAX;
        registers.rax = result as u64;
        let address = std::ptr::from_mut(registers) as usize;
        ignore_ended(ptrace(libc::PTRACE_SETREGS, self.thread, 0, address))
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let what = match self.about() {
            About::Data => self.file(0).map(|path| path.display().to_string()),
            About::File(at) => self.file(at).map(|path| path.display().to_string()),
            About::Open(at) | About::Path(at) => self.text(at).map(|text| text.escape_ascii().to_string()),
            About::Other => None,
        };
        write!(f, "{}({})", self.name(), what.unwrap_or_default())
    }
}

/// Where a call names what it changes, and whether it counts.
#[derive(Clone, Copy)]
enum About {
    /// The file is the first argument; its content changes.
    Data,
    /// The path is this argument; it is opened and perhaps made or cut.
    Open(usize),
    /// The open file is this argument.
    File(usize),
    /// The path is this argument.
    Path(usize),
    /// Nowhere simple.
    Other,
}

struct Known {
    number: c_long,
    name: &'static str,
    about: About,
    when: When,
}

/// Which calls the filter hands over.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// Those in whose argument one of the bits is set.
    AnyBit(u32, u32),
    /// Those whose argument is this.
    Is(u32, u32),
}

const WRITING: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u32;

const fn known(number: c_long, name: &'static str, about: About) -> Known {
    Known { number, name, about, when: When::Always }
}

const CALLS: &[Known] = &[
    Known { number: libc::SYS_openat, name: "openat", about: About::Open(1), when: When::AnyBit(2, WRITING) },
    Known { number: libc::SYS_open, name: "open", about: About::Open(0), when: When::AnyBit(1, WRITING) },
    known(libc::SYS_openat2, "openat2", About::Open(1)),
    known(libc::SYS_creat, "creat", About::Open(0)),
    known(libc::SYS_write, "write", About::Data),
    known(libc::SYS_writev, "writev", About::Data),
    known(libc::SYS_pwrite64, "pwrite", About::Data),
    known(libc::SYS_pwritev, "pwritev", About::Data),
    known(libc::SYS_pwritev2, "pwritev2", About::Data),
    known(libc::SYS_sendfile, "sendfile", About::Data),
    known(libc::SYS_copy_file_range, "copy_file_range", About::File(2)),
    known(libc::SYS_ftruncate, "ftruncate", About::File(0)),
    known(libc::SYS_truncate, "truncate", About::Path(0)),
    known(libc::SYS_fallocate, "fallocate", About::File(0)),
    known(libc::SYS_fsync, "fsync", About::File(0)),
    known(libc::SYS_fdatasync, "fdatasync", About::File(0)),
    known(libc::SYS_syncfs, "syncfs", About::File(0)),
    known(libc::SYS_sync, "sync", About::Other),
    known(libc::SYS_rename, "rename", About::Path(1)),
    known(libc::SYS_renameat, "renameat", About::Path(3)),
    known(libc::SYS_renameat2, "renameat2", About::Path(3)),
    known(libc::SYS_unlink, "unlink", About::Path(0)),
    known(libc::SYS_unlinkat, "unlinkat", About::Path(1)),
    known(libc::SYS_rmdir, "rmdir", About::Path(0)),
    known(libc::SYS_mkdir, "mkdir", About::Path(0)),
    known(libc::SYS_mkdirat, "mkdirat", About::Path(1)),
    known(libc::SYS_link, "link", About::Path(1)),
    known(libc::SYS_linkat, "linkat", About::Path(3)),
    known(libc::SYS_symlink, "symlink", About::Path(1)),
    known(libc::SYS_symlinkat, "symlinkat", About::Path(2)),
    known(libc::SYS_mknod, "mknod", About::Path(0)),
    known(libc::SYS_mknodat, "mknodat", About::Path(1)),
    known(libc::SYS_chmod, "chmod", About::Path(0)),
    known(libc::SYS_fchmod, "fchmod", About::File(0)),
    known(libc::SYS_fchmodat, "fchmodat", About::Path(1)),
    known(SYS_FCHMODAT2, "fchmodat2", About::Path(1)),
    known(libc::SYS_chown, "chown", About::Path(0)),
    known(libc::SYS_lchown, "lchown", About::Path(0)),
    known(libc::SYS_fchown, "fchown", About::File(0)),
    known(libc::SYS_fchownat, "fchownat", About::Path(1)),
    known(libc::SYS_utime, "utime", About::Path(0)),
    known(libc::SYS_utimes, "utimes", About::Path(0)),
    known(libc::SYS_futimesat, "futimesat", About::Path(1)),
    known(libc::SYS_utimensat, "utimensat", About::File(0)),
    known(libc::SYS_setxattr, "setxattr", About::Path(0)),
    known(libc::SYS_lsetxattr, "lsetxattr", About::Path(0)),
    known(libc::SYS_fsetxattr, "fsetxattr", About::File(0)),
    known(libc::SYS_removexattr, "removexattr", About::Path(0)),
    known(libc::SYS_lremovexattr, "lremovexattr", About::Path(0)),
    known(libc::SYS_fremovexattr, "fremovexattr", About::File(0)),
    known(SYS_SETXATTRAT, "setxattrat", About::Path(1)),
    known(SYS_REMOVEXATTRAT, "removexattrat", About::Path(1)),
    Known { number: libc::SYS_ioctl, name: "ioctl SETFLAGS", about: About::File(0), when: When::Is(1, FS_IOC_SETFLAGS) },
    Known { number: libc::SYS_ioctl, name: "ioctl FSSETXATTR", about: About::File(0), when: When::Is(1, FS_IOC_FSSETXATTR) },
    Known { number: libc::SYS_ioctl, name: "ioctl FICLONE", about: About::File(0), when: When::Is(1, FICLONE) },
    Known { number: libc::SYS_ioctl, name: "ioctl FICLONERANGE", about: About::File(0), when: When::Is(1, FICLONERANGE) },
];

/// Newer than the table of the `libc` crate.
const SYS_FCHMODAT2: c_long = 452;
const SYS_SETXATTRAT: c_long = 463;
const SYS_REMOVEXATTRAT: c_long = 466;

const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
const FICLONE: u32 = 0x4004_9409;
const FICLONERANGE: u32 = 0x4020_940d;

/// Returns the seccomp program: the calls of [`CALLS`] to the tracer, all others on.
fn filter() -> Vec<libc::sock_filter> {
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    const AT_NUMBER: u32 = 0;
    const AT_ARCH: u32 = 4;
    let at_arg = |arg: u32| 16 + 8 * arg;
    let load = |at: u32| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let unless_equal_skip = |value: u32, skip: u8| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, skip);
    let leave = |action: u32| step(libc::BPF_RET | libc::BPF_K, action, 0, 0);
    let to_tracer = leave(libc::SECCOMP_RET_TRACE);
    let allow = leave(libc::SECCOMP_RET_ALLOW);
    let mut program = vec![load(AT_ARCH), step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, AUDIT_ARCH_X86_64, 1, 0), allow];
    program.push(load(AT_NUMBER));
    for call in CALLS {
        let number = call.number as u32;
        match call.when {
            When::Always => program.extend([unless_equal_skip(number, 1), to_tracer]),
            When::AnyBit(arg, bits) => {
                let unless_set_skip = step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, bits, 0, 1);
                program.extend([unless_equal_skip(number, 4), load(at_arg(arg)), unless_set_skip, to_tracer, allow]);
            }
            When::Is(arg, value) => {
                program.extend([unless_equal_skip(number, 4), load(at_arg(arg)), unless_equal_skip(value, 1), to_tracer]);
                program.push(load(AT_NUMBER));
            }
        }
    }
    program.push(allow);
    program
}

fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Waits for any child or tracee of this thread; `None` when there is none left.
fn wait() -> Result<Option<(pid_t, c_int)>> {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes the status into a live integer.
        let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        match check(c_long::from(thread)) {
            Ok(_) => return Ok(Some((thread, status))),
            Err(why) if why.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            Err(why) if why.raw_os_error() == Some(libc::EINTR) => {}
            Err(why) => return Err(why).context(|| "cannot wait for the program"),
        }
    }
}

/// Lets a stopped thread go on, with a signal unless it is 0.
fn resume(thread: pid_t, signal: usize) -> Result {
    ignore_ended(ptrace(libc::PTRACE_CONT, thread, 0, signal))
}

/// Reads the registers of a stopped thread; `None` if it was killed meanwhile.
fn registers(thread: pid_t) -> Result<Option<libc::user_regs_struct>> {
    // SAFETY: the structure is made of integers, for which zero is a value.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    let address = std::ptr::from_mut(&mut registers) as usize;
    match ptrace(libc::PTRACE_GETREGS, thread, 0, address) {
        Err(why) if why.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(why) => Err(why).context(|| "cannot read a thread's registers"),
        Ok(_) => Ok(Some(registers)),
    }
}

fn ptrace(request: libc::c_uint, thread: pid_t, address: usize, data: usize) -> io::Result<c_long> {
    // SAFETY: `data` is an integer, or for the two requests on registers the address of a live `user_regs_struct` of the caller.
    let result = unsafe { libc::ptrace(request, thread, address as *mut c_void, data as *mut c_void) };
    check(result)
}

/// A thread may be killed at any time, by its own process or by ours; then there is nothing more to tell it.
fn ignore_ended(result: io::Result<c_long>) -> Result {
    match result {
        Err(why) if why.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop).context(|| "cannot steer a thread"),
    }
}

fn kill_group(group: pid_t) {
    // SAFETY: sends a signal; touches no memory. The group is the session that the child made for itself.
    unsafe { libc::kill(-group, libc::SIGKILL) };
}

fn check(result: c_long) -> io::Result<c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, at: u64, strike: Strike<'_>) -> Traced {
        let dir = std::env::temp_dir();
        let dir = dir.as_path();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("PATH", "/usr/bin:/bin").current_dir(dir);
        let output = File::create(dir.join(format!("trace-{}", std::process::id()))).unwrap();
        run(&command, &output, Plan { at, strike, below: dir, without_sync: false }).unwrap()
    }

    #[test]
    fn calls_are_counted_over_all_processes_and_only_those_that_change_something() {
        let traced = sh("mkdir t.$$; (rmdir t.$$; true) | cat; cat /dev/null; echo said; exit 3", 0, Strike::Never);
        assert_eq!((traced.code, traced.n_calls), (Some(3), 3), "mkdir, rmdir, and the line that goes to a file below");
    }

    #[test]
    fn a_call_that_fails_is_not_made() {
        let traced =
            sh("mkdir t.$$ 2>&1 | grep -q 'No space left' && test ! -e t.$$", 1, Strike::Fail { errno: 28, for_good: false });
        assert_eq!(traced.code, Some(0), "{traced:?}");
        assert!(traced.struck.unwrap().starts_with("mkdir(t."), "named");
    }

    #[test]
    fn what_is_frozen_before_a_call_goes_on_after_it() {
        let name = format!("frozen.{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let mut was_there = Vec::new();
        let mut meanwhile = || {
            was_there.push(path.exists());
            Ok(())
        };
        let traced = sh(&format!("mkdir {name}; test -d {name} && rmdir {name}"), 1, Strike::Freeze(&mut meanwhile));
        assert_eq!((traced.code, traced.n_calls, was_there), (Some(0), 2, vec![false]));
    }

    #[test]
    fn the_whole_tree_dies_before_the_call() {
        let name = format!("victim.{}", std::process::id());
        let mut n_closures = 0;
        let mut before = || {
            n_closures += 1;
            Ok(())
        };
        let traced = sh(&format!("sleep 100 & sleep 100 | sleep 100 & mkdir {name}"), 1, Strike::Kill(&mut before));
        assert_eq!((traced.code, n_closures), (None, 1));
        assert!(!std::env::temp_dir().join(name).exists());
    }
}
