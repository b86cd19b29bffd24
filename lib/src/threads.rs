//! Work that all processors share.

/// Calls `work` in as many threads as there are processors, or as can be started: this one works in any case.
pub fn in_all(work: &(dyn Fn() + Sync)) {
    std::thread::scope(|scope| {
        let start = || std::thread::Builder::new().spawn_scoped(scope, work);
        (1..n_processors()).map_while(|_| start().ok()).for_each(drop);
        work();
    });
}

/// Returns how many processors this process may use; 1 if the kernel does not tell.
pub fn n_processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
