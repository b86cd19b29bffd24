//! Work that makes work: a stack of jobs, and a few threads that take from it until there is none and nobody who could make more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Kind, Result};
use crate::threads;

/// Jobs that are waiting to be done, the newest first: so a walk through directories goes deep before it goes wide, and holds few of them open.
pub(super) struct Jobs<J> {
    state: Mutex<State<J>>,
    wake: Condvar,
}

struct State<J> {
    waiting: Vec<J>,
    n_busy: usize,
    n_idle: usize,
    failure: Option<Error>,
}

/// How a thread came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All jobs are done.
    Done,
    /// One failed, and those that waited are not done.
    Failed,
}

impl<J> Default for Jobs<J> {
    fn default() -> Self {
        let state = State { waiting: Vec::new(), n_busy: 0, n_idle: 0, failure: None };
        Self { state: Mutex::new(state), wake: Condvar::new() }
    }
}

impl<J: Send> Jobs<J> {
    /// Adds a job; also for those that are doing one.
    pub fn push(&self, job: J) {
        let mut state = self.state();
        state.waiting.push(job);
        // The kernel is asked only if there is somebody to wake.
        if state.n_idle > 0 {
            self.wake.notify_one();
        }
    }

    /// Does all jobs by `n_threads` threads, of which this one is one, and returns the first error.
    pub fn run(&self, n_threads: usize, work: impl Fn(J) -> Result<()> + Sync) -> Result<()> {
        self.run_with(n_threads, || (), |job, ()| work(job), |(), _| Ok(()))
    }

    /// The same with something of its own for each thread, which `begin` makes, and which `end` gets when the thread has no more to do.
    ///
    /// `end` is called when nobody has a job any more, or one failed; its error is that of the whole, if there is none.
    pub fn run_with<T>(
        &self,
        n_threads: usize,
        begin: impl Fn() -> T + Sync,
        work: impl Fn(J, &mut T) -> Result<()> + Sync,
        end: impl Fn(T, End) -> Result<()> + Sync,
    ) -> Result<()> {
        let one = || {
            let mut own = begin();
            let how = loop {
                match self.next() {
                    Ok(job) => {
                        // Who waits for the others must not wait for one that is no more.
                        let done = catch_unwind(AssertUnwindSafe(|| work(job, &mut own)));
                        self.done(done.unwrap_or_else(|_| Err(Error::new(Kind::Bug, "BUG: a worker panicked"))));
                    }
                    Err(how) => break how,
                }
            };
            if let Err(error) = end(own, how) {
                self.state().failure.get_or_insert(error);
            }
        };
        threads::in_all(n_threads, &one);
        self.state().failure.take().map_or(Ok(()), Err)
    }

    /// Takes a job, once there is one.
    fn next(&self) -> std::result::Result<J, End> {
        let mut state = self.state();
        loop {
            if state.failure.is_some() {
                return Err(End::Failed);
            }
            if let Some(job) = state.waiting.pop() {
                state.n_busy += 1;
                return Ok(job);
            }
            if state.n_busy == 0 {
                return Err(End::Done);
            }
            state.n_idle += 1;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.n_idle -= 1;
        }
    }

    fn done(&self, result: Result<()>) {
        let mut state = self.state();
        state.n_busy -= 1;
        if let Err(error) = result {
            state.failure.get_or_insert(error);
            state.waiting.clear();
        }
        if state.n_busy == 0 || state.failure.is_some() {
            self.wake.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn jobs_that_jobs_make_are_done_before_anybody_ends() {
        for n_threads in [1, 2, 7] {
            let (jobs, n_done, n_ends) = (Jobs::default(), AtomicUsize::new(0), AtomicUsize::new(0));
            jobs.push(12);
            let work = |depth: usize, own: &mut usize| {
                (0..2).filter(|_| depth > 0).for_each(|_| jobs.push(depth - 1));
                *own += 1;
                Ok(())
            };
            let end = |own, how| {
                assert_eq!(how, End::Done);
                n_done.fetch_add(own, Ordering::Relaxed);
                n_ends.fetch_add(1, Ordering::Relaxed);
                Ok(())
            };
            jobs.run_with(n_threads, || 0, work, end).unwrap();
            assert_eq!((n_done.into_inner(), n_ends.into_inner()), ((1 << 13) - 1, n_threads));
        }
    }

    #[test]
    fn the_first_failure_ends_it_for_all() {
        let fails: [fn() -> Result<()>; 2] = [|| Err(Error::new(Kind::Io, "no")), || panic!("no")];
        for (fail, told) in fails.into_iter().zip(["no", "BUG: a worker panicked"]) {
            for n_threads in [1, 3] {
                let jobs = Jobs::default();
                (0..1000).for_each(|n| jobs.push(n));
                let n_done = AtomicUsize::new(0);
                let work = |n: i32| {
                    n_done.fetch_add(usize::from(n != 990), Ordering::Relaxed);
                    if n == 990 { fail() } else { Ok(()) }
                };
                assert_eq!(jobs.run(n_threads, work).unwrap_err().to_string(), told);
                assert!(n_threads > 1 || n_done.into_inner() == 9, "the newest come first, and none after the failure");
            }
        }
        // What a thread does last can fail, too.
        let jobs = Jobs::default();
        jobs.push(());
        let ended = jobs.run_with(2, || (), |(), ()| Ok(()), |(), _| Err(Error::new(Kind::NoSpace, "full")));
        assert_eq!(ended.unwrap_err().kind(), Kind::NoSpace);
    }
}
