//! The new process, between `clone3` and `execve`: walks the prepared [`Op`]s with nothing but system calls on
//! prepared memory. No allocation, no lock, no panic path that would unwind into the parent's frames.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use gantry_mount::sys as mount;

use crate::plan::{Ask, Exec, Filesystem, Message, Op, Target, step};
use crate::sys::{self, Action, Fd, Sys, bare, prctl, raw};

const PROC_MAGIC: i64 = 0x9fa0;
const DEVPTS_MAGIC: i64 = 0x1cd1;
/// `MNT_DETACH | UMOUNT_NOFOLLOW` is not needed: the path is `.`.
const EMPTY: &CStr = c"";

/// What the walk carries along.
struct Walk<'a> {
    /// To the parent.
    socket: RawFd,
    /// The root file system, once attached.
    root: RawFd,
    /// The host's procfs.
    proc: RawFd,
    /// The directory that the last entry was made in, and its path: the next is often made there, too.
    parent: Option<(&'a CStr, Fd)>,
    /// An empty read-only tmpfs mounted over a masked directory, to be copied for the next.
    blank: Option<Fd>,
    /// The host's null device, once something was covered with it.
    null: Option<Fd>,
    /// Index of the found candidate.
    found: usize,
    /// The program, for [`Op::Find`].
    exec: Option<&'a Exec>,
    /// The first chdir worked.
    in_directory: bool,
    detail: u32,
    text: [u8; 160],
    length: usize,
}

/// Where something is to be mounted.
struct Place {
    fd: Fd,
    /// Whether it was made for that.
    made: bool,
}

/// Walks the operations; the last one does not return. `ignored`: the signals that the parent ignores.
pub(crate) fn run(ops: &[Op], socket: RawFd, proc: RawFd, ignored: u64) -> ! {
    // /proc/PID/exe and our memory are nobody's business while we stand in foreign namespaces.
    let _ = prctl(libc::PR_SET_DUMPABLE, 0, 0);
    let exec = ops.iter().find_map(|op| if let Op::Exec(exec) = op { Some(exec) } else { None });
    let mut walk = Walk {
        socket,
        root: libc::AT_FDCWD,
        proc,
        parent: None,
        blank: None,
        null: None,
        found: 0,
        exec,
        in_directory: false,
        detail: 0,
        text: [0; 160],
        length: 0,
    };
    default_signals(ignored);
    for (index, op) in ops.iter().enumerate() {
        walk.detail = 0;
        walk.length = 0;
        if let Err(errno) = walk.step(op) {
            walk.report(index, errno);
            sys::exit(255);
        }
    }
    sys::exit(255)
}

/// Shown by ps(1) for a process that holds namespaces.
const TITLE: &[u8; 7] = b"/pause\0";

/// Waits for its end. Dead children, orphans of its pid namespace among them, leave no trace.
fn hold(title: (usize, usize)) -> ! {
    let action = Action { handler: libc::SIG_IGN, flags: 0, restorer: 0, mask: 0 };
    let _ = raw!(libc::SYS_rt_sigaction, libc::SIGCHLD, &raw const action, 0usize, 8usize);
    let _ = prctl(libc::PR_SET_NAME, c"pause".as_ptr() as u64, 0);
    retitle(title);
    // The parent takes the end of its socket for the start.
    let _ = raw!(libc::SYS_close_range, 0, u32::MAX, 0);
    loop {
        let _ = raw!(libc::SYS_ppoll, 0usize, 0, 0usize, 0usize, 8usize);
    }
}

/// The command line is the shim's, with the host's paths in it: whoever shares the pid namespace may read it. A last
/// byte other than NUL makes the kernel end it at the first one (proc(5), `cmdline`).
fn retitle((start, end): (usize, usize)) {
    if end.saturating_sub(start) < TITLE.len() + 1 {
        return;
    }
    let place = start as *mut u8;
    // SAFETY: the range is this process's own copy of its arguments' text, writable for the process's life (the kernel
    // said where), and nobody reads it here any more.
    unsafe {
        std::ptr::write_bytes(place, 0, end - start - 1);
        std::ptr::copy_nonoverlapping(TITLE.as_ptr(), place, TITLE.len());
        std::ptr::write(place.add(end - start - 1), b' ');
    }
}

/// Ignored signals and a blocked mask would pass through execve. Handlers are gone already (`CLONE_CLEAR_SIGHAND`).
fn default_signals(ignored: u64) {
    let action = Action { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    for signal in (1..=64).filter(|signal| ignored & 1 << (signal - 1) != 0) {
        let _ = raw!(libc::SYS_rt_sigaction, signal, &raw const action, 0usize, 8usize);
    }
    let none = 0u64;
    let _ = raw!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, 0usize, 8usize);
}

/// Sends a message; the parent may be gone.
pub(crate) fn send(socket: RawFd, message: &Message) -> Sys<()> {
    let bytes = &raw const *message;
    raw!(libc::SYS_sendto, socket, bytes, size_of::<Message>(), libc::MSG_NOSIGNAL, 0usize, 0usize).map(drop)
}

impl<'a> Walk<'a> {
    fn report(&self, index: usize, errno: i32) {
        let mut message = Message { index: index as u32, detail: self.detail, errno, ..Message::EMPTY };
        message.length = self.length as u32;
        message.text = self.text;
        let _ = send(self.socket, &message);
    }

    fn step(&mut self, op: &'a Op) -> Sys<()> {
        match op {
            Op::Session => raw!(libc::SYS_setsid).map(drop),
            Op::Keyring(name) => keyring(name),
            Op::Setns { fd, flags, .. } => sys::setns(fd.0, *flags),
            Op::Unshare(flags) => raw!(libc::SYS_unshare, *flags).map(drop),
            Op::JoinCgroups(files) => files.iter().try_for_each(|file| sys::write_once(file.0, b"0")),
            Op::OpenAndJoinCgroups(paths) => paths.iter().try_for_each(|path| {
                let file = sys::openat(libc::AT_FDCWD, path, libc::O_WRONLY)?;
                sys::write_once(file.0, b"0")
            }),
            Op::Ask(ask) => self.ask(*ask),
            Op::BecomeRoot => become_root(),
            Op::Loopback => loopback(),
            Op::Hostname(name) => raw!(libc::SYS_sethostname, name.as_ptr(), name.count_bytes()).map(drop),
            Op::Domainname(name) => raw!(libc::SYS_setdomainname, name.as_ptr(), name.count_bytes()).map(drop),
            Op::Sysctl { path, value } => {
                let file = sys::openat(self.proc, path, libc::O_WRONLY)?;
                sys::write_once(file.0, value.to_bytes())
            }
            Op::Propagation(flags) => {
                raw!(libc::SYS_mount, EMPTY.as_ptr(), c"/".as_ptr(), EMPTY.as_ptr(), *flags, 0usize).map(drop)
            }
            Op::AttachRoot { tree, at } => {
                attach(tree.0, libc::AT_FDCWD, at)?;
                self.root = tree.0;
                Ok(())
            }
            Op::Filesystem(fs) => self.filesystem(fs),
            Op::Attach { tree, target, file } => {
                let place = self.make(target, *file)?;
                self.attach(tree.0, &place)
            }
            Op::AttachHosts { path, set, clear, target } => self.attach_hosts(path, (*set, *clear), target),
            Op::Attributes { target, set, recursive } => {
                let place = self.resolve(target)?;
                set_attributes(place.0, *set, *recursive)
            }
            Op::Device { target, mode, device, uid, gid } => self.device(target, *mode, *device, *uid, *gid),
            Op::Symlink { target, content } => self.symlink(target, content),
            Op::Mask(target) => self.mask(target),
            Op::ReadonlyPath(target) => self.readonly_path(target),
            Op::Directory(target) => self.make(target, false).map(drop),
            Op::Pivot => self.pivot(),
            Op::MoveRoot => self.move_root(),
            Op::Console { size, bind, owner } => self.console(*size, *bind, *owner),
            Op::Stdio { fds, owner, null } => stdio(fds, *owner, null.0),
            Op::Label { file, value } => {
                let attribute = sys::openat(self.proc, file, libc::O_WRONLY)?;
                sys::write_once(attribute.0, value.to_bytes())
            }
            Op::Scheduler(attr) => raw!(libc::SYS_sched_setattr, 0, &raw const **attr, 0).map(drop),
            Op::IoPriority(value) => raw!(libc::SYS_ioprio_set, 1, 0, *value).map(drop),
            Op::Affinity(set) => raw!(libc::SYS_sched_setaffinity, 0, size_of_val(&**set), set.as_ptr()).map(drop),
            Op::Personality(domain) => raw!(libc::SYS_personality, *domain).map(drop),
            Op::MemoryPolicy { mode, nodes } => {
                raw!(libc::SYS_set_mempolicy, *mode, nodes.as_ptr(), 64 * nodes.len() + 1).map(drop)
            }
            Op::NoNewPrivileges => prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop),
            Op::Seccomp(program) => self.seccomp(program),
            Op::WorkingDirectory { path, late } => self.working_directory(path, *late),
            Op::Bounding { drop } => bounding(*drop),
            Op::User { uid, gid, groups, umask, set_groups } => user(*uid, *gid, groups, *umask, *set_groups),
            Op::Capabilities(sets) => capabilities(sets),
            Op::Find => self.find(),
            Op::Gate { fifo } => self.gate(fifo.as_ref().map(|fifo| fifo.0)),
            Op::CloseFrom(first) => {
                const CLOSE_RANGE_CLOEXEC: u32 = 4;
                raw!(libc::SYS_close_range, *first, u32::MAX, CLOSE_RANGE_CLOEXEC).map(drop)
            }
            Op::Exec(exec) => self.exec(exec),
            Op::Hold { title } => hold(*title),
        }
    }

    fn ask(&self, ask: Ask) -> Sys<()> {
        send(self.socket, &Message { kind: ask as u32, ..Message::EMPTY })?;
        self.answer()
    }

    /// Waits for the parent's byte. Its death is ours.
    fn answer(&self) -> Sys<()> {
        match sys::read_byte(self.socket)? {
            Some(_) => Ok(()),
            None => sys::exit(255),
        }
    }

    fn gate(&self, fifo: Option<RawFd>) -> Sys<()> {
        let ready = send(self.socket, &Message { kind: Ask::Ready as u32, ..Message::EMPTY });
        match fifo {
            None => {
                ready?;
                self.answer()
            }
            Some(fifo) => sys::read_byte(fifo).map(drop),
        }
    }

    // --- mounts ---

    /// Opens a path below the root.
    fn resolve(&self, target: &Target) -> Sys<Fd> {
        self.resolve_path(target, &target.path)
    }

    fn resolve_path(&self, target: &Target, path: &CStr) -> Sys<Fd> {
        resolve(self.root, target, path)
    }

    /// Opens a path below the root, making what is missing: directories, and at the end a file if `file`.
    fn make(&mut self, target: &'a Target, file: bool) -> Sys<Place> {
        self.detail = step::TARGET;
        let (fd, made) = match self.resolve(target) {
            Err(libc::ENOENT) => (self.make_missing(target, file)?, true),
            other => (other?, false),
        };
        if target.outside_proc && sys::fs_type(fd.0)? == PROC_MAGIC {
            self.detail = step::FORBIDDEN;
            return Err(libc::EPERM);
        }
        Ok(Place { fd, made })
    }

    fn make_missing(&mut self, target: &'a Target, file: bool) -> Sys<Fd> {
        if let Some(name) = target.names.last()
            && let Ok(parent) = self.parent_of(target)
            && make_entry(parent, name, file).is_ok()
        {
            // What was made there only now: not by way of a link.
            let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_SYMLINKS;
            return sys::openat2(parent, name, libc::O_PATH, resolve);
        }
        make_missing(self.root, target, file)
    }

    /// Mounts over a place. Paths that led through it lead elsewhere then, unless it was made for this.
    fn attach(&mut self, tree: RawFd, place: &Place) -> Sys<()> {
        self.detail = step::ATTACH;
        if !place.made {
            self.parent = None;
        }
        attach(tree, place.fd.0, EMPTY)
    }

    fn attach_hosts(&mut self, path: &CStr, (set, clear): (u64, u64), target: &'a Target) -> Sys<()> {
        self.detail = step::OPEN;
        let tree = bare(mount::open_tree(mount::CWD, path, mount::OPEN_TREE_CLONE))?;
        let empty = libc::AT_EMPTY_PATH as u32;
        bare(mount::mount_setattr(tree.as_raw_fd(), EMPTY, empty, set, clear, libc::MS_PRIVATE, None))?;
        let place = self.make(target, false)?;
        self.attach(tree.as_raw_fd(), &place)
    }

    fn filesystem(&mut self, fs: &'a Filesystem) -> Sys<()> {
        // What was there gives its mode; a directory made only now has none worth keeping.
        let inherit = fs.inherit_mode && self.resolve(&fs.target).is_ok();
        let place = self.make(&fs.target, false)?;
        self.detail = step::OPEN;
        let context = bare(mount::fsopen(&fs.kind))?;
        let result = self.configure(fs, &context, inherit.then_some(&place.fd));
        if result.is_err() {
            let length = mount::read_log(as_borrowed(&context), &mut self.text).unwrap_or(0);
            self.length = length.min(self.text.len());
        }
        let tree = result?;
        if fs.propagation != 0 {
            self.detail = step::ATTACH;
            bare(mount::mount_setattr(
                tree.as_raw_fd(),
                EMPTY,
                libc::AT_EMPTY_PATH as u32,
                0,
                0,
                fs.propagation,
                None,
            ))?;
        }
        self.attach(tree.as_raw_fd(), &place)
    }

    /// Sets the parameters of a file system, its root's mode like `model`'s.
    fn configure(
        &mut self,
        fs: &Filesystem,
        context: &std::os::fd::OwnedFd,
        model: Option<&Fd>,
    ) -> Sys<std::os::fd::OwnedFd> {
        let context = as_borrowed(context);
        if let Some(place) = model {
            let mut digits = [0u8; 6];
            bare(mount::fsconfig_string(context, c"mode", octal(sys::fstat(place.0)?.st_mode & 0o7777, &mut digits)))?;
        }
        self.detail = step::CREATE;
        if let Some(source) = &fs.source {
            bare(mount::fsconfig_string(context, c"source", source))?;
        }
        for (index, (key, value)) in fs.data.iter().enumerate() {
            self.detail = step::DATA + index as u32;
            match value {
                Some(value) => bare(mount::fsconfig_string(context, key, value))?,
                None => bare(mount::fsconfig_flag(context, key))?,
            }
        }
        self.detail = step::CREATE;
        bare(mount::fsconfig_create(context))?;
        self.detail = step::MOUNT;
        bare(mount::fsmount(context, fs.attributes))
    }

    /// The directory that holds a target, for making an entry in it.
    fn parent_of(&mut self, target: &'a Target) -> Sys<RawFd> {
        let path = match target.prefixes.len() {
            0 => return Err(libc::EEXIST),
            1 => return Ok(self.root),
            count => target.prefixes[count - 2].as_c_str(),
        };
        // A link may have led to what is known.
        if let Some((known, parent)) = &self.parent
            && *known == path
            && !target.no_symlinks
        {
            return Ok(parent.0);
        }
        let parent = self.resolve_path(target, path)?;
        let fd = parent.0;
        self.parent = Some((path, parent));
        Ok(fd)
    }

    /// The same, making the directory if it is missing.
    fn make_parent_of(&mut self, target: &'a Target) -> Sys<RawFd> {
        match self.parent_of(target) {
            Err(libc::ENOENT) => {}
            other => return other,
        }
        // By making the target as a directory and taking it away again.
        drop(make_missing(self.root, target, false)?);
        let parent = self.parent_of(target)?;
        let name = target.names.last().ok_or(libc::EEXIST)?;
        raw!(libc::SYS_unlinkat, parent, name.as_ptr(), libc::AT_REMOVEDIR)?;
        Ok(parent)
    }

    fn device(&mut self, target: &'a Target, mode: u32, device: u64, uid: u32, gid: u32) -> Sys<()> {
        let parent = self.make_parent_of(target)?;
        let name = target.names.last().ok_or(libc::EEXIST)?;
        let old = raw!(libc::SYS_umask, 0)?;
        let made = raw!(libc::SYS_mknodat, parent, name.as_ptr(), mode, device);
        raw!(libc::SYS_umask, old)?;
        match made {
            Err(libc::EEXIST) => return Ok(()),
            other => other?,
        };
        if uid != 0 || gid != 0 {
            raw!(libc::SYS_fchownat, parent, name.as_ptr(), uid, gid, libc::AT_SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    fn symlink(&mut self, target: &'a Target, content: &CStr) -> Sys<()> {
        let parent = self.make_parent_of(target)?;
        let name = target.names.last().ok_or(libc::EEXIST)?;
        match raw!(libc::SYS_symlinkat, content.as_ptr(), parent, name.as_ptr()) {
            Err(libc::EEXIST) => Ok(()),
            other => other.map(drop),
        }
    }

    fn mask(&mut self, target: &Target) -> Sys<()> {
        self.parent = None;
        let place = match self.resolve(target) {
            Err(libc::ENOENT | libc::ENOTDIR) => return Ok(()),
            other => other?,
        };
        if sys::fstat(place.0)?.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return self.mask_file(place.0);
        }
        let tree = match &self.blank {
            Some(blank) => bare(mount::open_tree(blank.0, EMPTY, clone_flags(false)))?,
            None => blank_directory()?,
        };
        attach(tree.as_raw_fd(), place.0, EMPTY)?;
        if self.blank.is_none() {
            use std::os::fd::IntoRawFd;
            self.blank = Some(Fd(tree.into_raw_fd()));
        }
        Ok(())
    }

    /// Covers a file with the host's `/dev/null`, which is still reachable: nothing in the image can stand in for it.
    fn mask_file(&mut self, place: RawFd) -> Sys<()> {
        let null = match self.null.take() {
            Some(null) => null,
            None => sys::openat(libc::AT_FDCWD, c"/dev/null", libc::O_PATH | libc::O_NOFOLLOW)?,
        };
        require_device(null.0, 1, 3)?;
        let tree = bare(mount::open_tree(null.0, EMPTY, clone_flags(false)))?;
        self.null = Some(null);
        attach(tree.as_raw_fd(), place, EMPTY)
    }

    fn readonly_path(&mut self, target: &Target) -> Sys<()> {
        self.parent = None;
        let place = match self.resolve(target) {
            Err(libc::ENOENT | libc::ENOTDIR) => return Ok(()),
            other => other?,
        };
        let tree = bare(mount::open_tree(place.0, EMPTY, clone_flags(true)))?;
        set_attributes(tree.as_raw_fd(), mount::MOUNT_ATTR_RDONLY, true)?;
        attach(tree.as_raw_fd(), place.0, EMPTY)
    }

    fn pivot(&mut self) -> Sys<()> {
        let old = sys::openat(libc::AT_FDCWD, c"/", libc::O_PATH | libc::O_DIRECTORY)?;
        raw!(libc::SYS_fchdir, self.root)?;
        raw!(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr())?;
        raw!(libc::SYS_fchdir, old.0)?;
        raw!(libc::SYS_umount2, c".".as_ptr(), libc::MNT_DETACH)?;
        raw!(libc::SYS_chdir, c"/".as_ptr())?;
        self.root = libc::AT_FDCWD;
        Ok(())
    }

    fn move_root(&mut self) -> Sys<()> {
        raw!(libc::SYS_fchdir, self.root)?;
        raw!(libc::SYS_mount, c".".as_ptr(), c"/".as_ptr(), EMPTY.as_ptr(), libc::MS_MOVE, 0usize)?;
        raw!(libc::SYS_chroot, c".".as_ptr())?;
        raw!(libc::SYS_chdir, c"/".as_ptr())?;
        self.root = libc::AT_FDCWD;
        Ok(())
    }

    // --- streams ---

    fn console(&mut self, size: Option<(u16, u16)>, bind: bool, owner: u32) -> Sys<()> {
        let resolve = if self.root == libc::AT_FDCWD { 0 } else { sys::RESOLVE_IN_ROOT };
        let path = if self.root == libc::AT_FDCWD { c"/dev/pts/ptmx" } else { c"dev/pts/ptmx" };
        let resolve = resolve | sys::RESOLVE_NO_MAGICLINKS | sys::RESOLVE_NO_SYMLINKS;
        let master = sys::openat2(self.root, path, libc::O_RDWR | libc::O_NOCTTY, resolve)?;
        // A forged ptmx would hand the caller a descriptor of the image's choice.
        require_device(master.0, 5, 2)?;
        if sys::fs_type(master.0)? != DEVPTS_MAGIC {
            return Err(libc::ENOTTY);
        }
        let unlocked = 0i32;
        raw!(libc::SYS_ioctl, master.0, libc::TIOCSPTLCK, &raw const unlocked)?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let slave = Fd(raw!(libc::SYS_ioctl, master.0, libc::TIOCGPTPEER, flags)? as RawFd);
        if let Some((rows, columns)) = size {
            let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            raw!(libc::SYS_ioctl, master.0, libc::TIOCSWINSZ, &raw const size)?;
        }
        if bind {
            self.bind_console(slave.0)?;
        }
        self.send_descriptor(Ask::Console, master.0)?;
        raw!(libc::SYS_fchown, slave.0, owner, u32::MAX)?;
        raw!(libc::SYS_ioctl, slave.0, libc::TIOCSCTTY, 0)?;
        (0..3).try_for_each(|fd| put_at(slave.0, fd))
    }

    fn bind_console(&self, slave: RawFd) -> Sys<()> {
        let dev = sys::openat2(self.root, c"dev", libc::O_PATH | libc::O_DIRECTORY, sys::RESOLVE_IN_ROOT)?;
        match raw!(libc::SYS_mknodat, dev.0, c"console".as_ptr(), libc::S_IFREG | 0o666, 0) {
            Err(libc::EEXIST) => {}
            other => drop(other?),
        }
        let place = sys::openat(dev.0, c"console", libc::O_PATH | libc::O_NOFOLLOW)?;
        let tree = bare(mount::open_tree(slave, EMPTY, clone_flags(false)))?;
        attach(tree.as_raw_fd(), place.0, EMPTY)
    }

    fn send_descriptor(&self, ask: Ask, fd: RawFd) -> Sys<()> {
        let message = Message { kind: ask as u32, ..Message::EMPTY };
        // SAFETY: Message is plain data without padding-sensitive reads; its bytes live as long as it.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const message).cast::<u8>(), size_of::<Message>()) };
        sys::send_fd(self.socket, bytes, fd)?;
        self.answer()
    }

    // --- the process ---

    fn seccomp(&self, program: &crate::seccomp::Program) -> Sys<()> {
        #[repr(C)]
        struct Filter {
            length: u16,
            code: *const crate::seccomp::Insn,
        }
        const SET_MODE_FILTER: u32 = 1;
        let filter = Filter { length: program.code.len() as u16, code: program.code.as_ptr() };
        let listener = raw!(libc::SYS_seccomp, SET_MODE_FILTER, program.flags, &raw const filter)?;
        if program.notifies {
            let listener = Fd(listener as RawFd);
            self.send_descriptor(Ask::Listener, listener.0)?;
        }
        Ok(())
    }

    fn working_directory(&mut self, path: &CStr, late: bool) -> Sys<()> {
        if !late {
            // The user may be the only one who may enter (a root-squashed home): tried again later.
            self.in_directory = raw!(libc::SYS_chdir, path.as_ptr()).is_ok();
            return Ok(());
        }
        if !self.in_directory {
            raw!(libc::SYS_chdir, path.as_ptr())?;
        }
        // A working directory outside the root (a leaked descriptor) has a path that does not begin with a slash.
        let mut buffer = [0u8; 4096];
        raw!(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len())?;
        if buffer[0] == b'/' { Ok(()) } else { Err(libc::ENOENT) }
    }

    /// Finds the first candidate that can be executed, as the user and in the container.
    fn find(&mut self) -> Sys<()> {
        let exec = self.exec.ok_or(libc::EINVAL)?;
        let mut error = libc::ENOENT;
        for (index, candidate) in exec.candidates.iter().enumerate() {
            match executable(candidate, exec.own) {
                Ok(()) => {
                    self.found = index;
                    return Ok(());
                }
                Err(libc::ENOENT | libc::ENOTDIR) if exec.searched => {}
                Err(number) => error = number,
            }
        }
        Err(error)
    }

    fn exec(&self, exec: &Exec) -> Sys<()> {
        let path = exec.candidates.get(self.found).ok_or(libc::ENOENT)?;
        raw!(libc::SYS_execve, path.as_ptr(), exec.argv.as_ptr(), exec.envp.as_ptr()).map(drop)
    }
}

fn resolve(root: RawFd, target: &Target, path: &CStr) -> Sys<Fd> {
    let links = if target.no_symlinks { sys::RESOLVE_NO_SYMLINKS } else { 0 };
    let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS | links;
    sys::openat2(root, path, libc::O_PATH, resolve)
}

/// Makes a directory, or an empty file.
fn make_entry(parent: RawFd, name: &CStr, file: bool) -> Sys<()> {
    if file {
        raw!(libc::SYS_mknodat, parent, name.as_ptr(), libc::S_IFREG | 0o644, 0).map(drop)
    } else {
        raw!(libc::SYS_mkdirat, parent, name.as_ptr(), 0o755).map(drop)
    }
}

fn make_missing(root: RawFd, target: &Target, file: bool) -> Sys<Fd> {
    let mut parent = Fd(raw!(libc::SYS_fcntl, root, libc::F_DUPFD_CLOEXEC, 3)? as RawFd);
    let last = target.names.len().saturating_sub(1);
    for (depth, (prefix, name)) in target.prefixes.iter().zip(&target.names).enumerate() {
        parent = match resolve(root, target, prefix) {
            Err(libc::ENOENT) => {
                make_entry(parent.0, name, file && depth == last)?;
                resolve(root, target, prefix)?
            }
            other => other?,
        };
    }
    Ok(parent)
}

/// Makes what is missing of a path below a root: directories, and at the end a file if `file`.
pub(crate) fn make_place(root: RawFd, target: &Target, file: bool) -> Sys<()> {
    match resolve(root, target, &target.path) {
        Err(libc::ENOENT) => make_missing(root, target, file).map(drop),
        other => other.map(drop),
    }
}

/// Whether a path is a file that the process may execute, and not the runtime itself (reached by /proc/self/exe).
fn executable(path: &CStr, own: (u64, u64)) -> Sys<()> {
    let file = sys::openat(libc::AT_FDCWD, path, libc::O_PATH)?;
    let stat = sys::fstat(file.0)?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => return Err(libc::EISDIR),
        libc::S_IFREG => {}
        _ => return Err(libc::EACCES),
    }
    if (stat.st_dev, stat.st_ino) == own || stat.st_mode & 0o111 == 0 {
        return Err(libc::EACCES);
    }
    match raw!(libc::SYS_faccessat2, libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) {
        Err(libc::ENOSYS | libc::EPERM) => Ok(()),
        other => other.map(drop),
    }
}

fn as_borrowed(fd: &std::os::fd::OwnedFd) -> BorrowedFd<'_> {
    use std::os::fd::AsFd;
    fd.as_fd()
}

fn attach(tree: RawFd, place: RawFd, path: &CStr) -> Sys<()> {
    let to = if path.is_empty() { mount::MOVE_MOUNT_T_EMPTY_PATH } else { 0 };
    bare(mount::move_mount(tree, EMPTY, place, path, mount::MOVE_MOUNT_F_EMPTY_PATH | to))
}

fn clone_flags(recursive: bool) -> u32 {
    let all = if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    mount::OPEN_TREE_CLONE | libc::AT_EMPTY_PATH as u32 | all
}

fn set_attributes(place: RawFd, set: u64, recursive: bool) -> Sys<()> {
    let all = if recursive { libc::AT_RECURSIVE } else { 0 };
    bare(mount::mount_setattr(place, EMPTY, (libc::AT_EMPTY_PATH | all) as u32, set, 0, 0, None))
}

fn blank_directory() -> Sys<std::os::fd::OwnedFd> {
    let context = bare(mount::fsopen(c"tmpfs"))?;
    bare(mount::fsconfig_string(as_borrowed(&context), c"mode", c"555"))?;
    bare(mount::fsconfig_string(as_borrowed(&context), c"nr_inodes", c"1"))?;
    bare(mount::fsconfig_create(as_borrowed(&context)))?;
    let flags =
        mount::MOUNT_ATTR_RDONLY | mount::MOUNT_ATTR_NODEV | mount::MOUNT_ATTR_NOSUID | mount::MOUNT_ATTR_NOEXEC;
    bare(mount::fsmount(as_borrowed(&context), flags))
}

/// Writes a mode's octal digits.
fn octal(mode: u32, digits: &mut [u8; 6]) -> &CStr {
    for (at, digit) in digits[..5].iter_mut().enumerate() {
        *digit = b'0' + ((mode >> (3 * (4 - at))) & 7) as u8;
    }
    digits[5] = 0;
    CStr::from_bytes_with_nul(digits).unwrap_or(c"0755")
}

fn require_device(fd: RawFd, major: u32, minor: u32) -> Sys<()> {
    let stat = sys::fstat(fd)?;
    let is = stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(major, minor);
    if is { Ok(()) } else { Err(libc::ENODEV) }
}

fn keyring(name: &CStr) -> Sys<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    const DESCRIBE_SETPERM: i32 = 5;
    /// Possessor all, user view and search: as runc leaves it.
    const PERMISSIONS: u32 = 0x3f0b_0000;
    let id = match raw!(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) {
        // No keyrings in this kernel, or a quota or filter in the way: not worth failing for.
        Err(libc::ENOSYS | libc::EPERM | libc::EDQUOT | libc::EACCES) => return Ok(()),
        other => other?,
    };
    let _ = raw!(libc::SYS_keyctl, DESCRIBE_SETPERM, id, PERMISSIONS);
    Ok(())
}

fn become_root() -> Sys<()> {
    // Forbidden where setgroups is denied to the namespace; then there is nothing to drop either.
    let _ = raw!(libc::SYS_setgroups, 0, 0usize);
    raw!(libc::SYS_setresgid, 0, 0, 0)?;
    raw!(libc::SYS_setresuid, 0, 0, 0)?;
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

pub(crate) fn loopback() -> Sys<()> {
    let socket = Fd(raw!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)? as RawFd);
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_LOOPBACK | libc::IFF_RUNNING) as i16;
    raw!(libc::SYS_ioctl, socket.0, libc::SIOCSIFFLAGS, &raw const request).map(drop)
}

/// Puts a copy of a descriptor at a number; the copy stays open at exec.
fn put_at(fd: RawFd, at: RawFd) -> Sys<()> {
    if fd == at {
        return raw!(libc::SYS_fcntl, fd, libc::F_SETFD, 0).map(drop);
    }
    raw!(libc::SYS_dup3, fd, at, 0).map(drop)
}

fn stdio(fds: &[RawFd; 3], owner: u32, null: RawFd) -> Sys<()> {
    let is_null = |fd: RawFd| fd == -1 || require_device(fd, 1, 3).is_ok();
    let nulls = fds.map(is_null);
    // The host's null device is on a mount that the container has not (and no checkpoint could find).
    let own = if nulls.contains(&true) { own_null() } else { None };
    let null = own.as_ref().map_or(null, |own| own.0);
    let mut moved = [Fd(-1), Fd(-1), Fd(-1)];
    let mut sources = [null; 3];
    for (at, source) in sources.iter_mut().enumerate() {
        if !nulls[at] {
            own_stream(fds[at], owner);
            *source = fds[at];
        }
        // First out of the way of 0, 1 and 2, which may be among the sources.
        if *source < 3 {
            moved[at] = Fd(raw!(libc::SYS_fcntl, *source, libc::F_DUPFD_CLOEXEC, 3)? as RawFd);
            *source = moved[at].0;
        }
    }
    sources.iter().enumerate().try_for_each(|(at, fd)| put_at(*fd, at as RawFd))
}

/// The container's null device, at a number above those of the streams; none where it has no real one.
fn own_null() -> Option<Fd> {
    let own = sys::openat(libc::AT_FDCWD, c"/dev/null", libc::O_RDWR | libc::O_NOCTTY).ok()?;
    require_device(own.0, 1, 3).ok()?;
    if own.0 > 2 {
        return Some(own);
    }
    raw!(libc::SYS_fcntl, own.0, libc::F_DUPFD_CLOEXEC, 3).ok().map(|fd| Fd(fd as RawFd))
}

/// Lets the user reopen its streams (/dev/stdout). Not possible for every kind of file, and then not needed.
fn own_stream(fd: RawFd, owner: u32) {
    let Ok(stat) = sys::fstat(fd) else { return };
    if stat.st_uid != owner {
        let _ = raw!(libc::SYS_fchown, fd, owner, u32::MAX);
    }
}

fn bounding(drop: u64) -> Sys<()> {
    for number in (0..64).filter(|number| drop & 1 << number != 0) {
        prctl(libc::PR_CAPBSET_DROP, number, 0)?;
    }
    Ok(())
}

fn user(uid: u32, gid: u32, groups: &[u32], umask: Option<u32>, set_groups: bool) -> Sys<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
    if set_groups {
        raw!(libc::SYS_setgroups, groups.len(), groups.as_ptr())?;
    }
    raw!(libc::SYS_setresgid, gid, gid, gid)?;
    raw!(libc::SYS_setresuid, uid, uid, uid)?;
    prctl(libc::PR_SET_KEEPCAPS, 0, 0)?;
    raw!(libc::SYS_umask, umask.unwrap_or(0o022))?;
    // Changing ids resets it to the system's default.
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

fn capabilities(sets: &crate::capabilities::Sets) -> Sys<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    const PR_CAP_AMBIENT: i32 = 47;
    const AMBIENT_RAISE: u64 = 2;
    const AMBIENT_CLEAR: u64 = 4;
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| {
        [(sets.effective >> shift) as u32, (sets.permitted >> shift) as u32, (sets.inheritable >> shift) as u32]
    };
    let data = [half(0), half(32)];
    raw!(libc::SYS_capset, &raw const header, data.as_ptr())?;
    prctl(PR_CAP_AMBIENT, AMBIENT_CLEAR, 0)?;
    for number in (0..64).filter(|number| sets.ambient & (1 << number) != 0) {
        prctl(PR_CAP_AMBIENT, AMBIENT_RAISE, number)?;
    }
    Ok(())
}
