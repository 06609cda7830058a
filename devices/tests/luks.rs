//! Encrypted disks against the programs that make them: qemu-img, qemu-io and cryptsetup, in both directions.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vsc_devices::block::luks::{self, Draft, LuksDisk, LuksError, LuksOpenError, PAYLOAD};
use vsc_devices::block::raw::RawOptions;
use vsc_devices::block::{Disk, Iovecs, Op, Request};
use vsc_devices::secret::Passphrase;

const SECRET: &str = "correct horse battery staple";

/// Held while a program is started: until it executes its own, it has this process's descriptors, and with them the locks
/// of what another test closes meanwhile.
static STARTING: Mutex<()> = Mutex::new(());

fn output(command: &mut Command) -> io::Result<Output> {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn();
    drop(starting);
    child?.wait_with_output()
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("vsc-luks-{name}-{}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("key"), SECRET).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Runs a program here; false when there is none such, which is an error in CI.
    fn run(&self, program: &str, words: &[&str]) -> bool {
        let output = output(Command::new(program).args(words).current_dir(&self.0));
        let output = match output {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                assert!(std::env::var_os("CI").is_none(), "{program} is missing");
                eprintln!("skipped: no {program}");
                return false;
            }
            output => output.unwrap(),
        };
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "{program} {words:?}: {said}");
        assert!(!said.contains("verification failed"), "{words:?}: {said}");
        true
    }

    /// `qemu-img create`, which fails on fast processors now and then (QEMU's commit c72cab5ad9f8).
    fn qemu_img(&self, name: &str, options: &str) -> bool {
        for _ in 0..60 {
            let options = format!("key-secret=s,iter-time=20{options}");
            let object = "secret,id=s,file=key";
            let mut command = Command::new("qemu-img");
            command.args(["create", "-q", "--object", object, "-f", "luks", "-o"]);
            command.args([&options, name, "8M"]).current_dir(&self.0);
            match output(&mut command) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return self.run("qemu-img", &["--version"]);
                }
                Ok(output) if output.status.success() => return true,
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert!(said.contains("accurate CPU usage"), "{said}");
                }
                Err(e) => panic!("{e}"),
            }
        }
        panic!("qemu-img never got a measure");
    }

    fn qemu_io(&self, name: &str, commands: &[&str]) -> bool {
        let image = format!("driver=luks,file.filename={name},key-secret=s");
        let mut words = vec!["--object", "secret,id=s,file=key", "--image-opts", &image];
        for command in commands {
            words.extend(["-c", command]);
        }
        self.run("qemu-io", &words)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn open(path: &Path, secret: &str, options: &RawOptions) -> Result<LuksDisk, LuksError> {
    let passphrase = Passphrase::copy(secret.as_bytes()).unwrap();
    // What is being started has no lock of an earlier disk any more.
    drop(STARTING.lock());
    match LuksDisk::open(path, options, &passphrase) {
        Ok(disk) => Ok(disk),
        Err(LuksOpenError::Luks(e)) => Err(e.source),
        Err(LuksOpenError::Open(e)) => panic!("{e}"),
    }
}

fn error(path: &Path, secret: &str) -> LuksError {
    match open(path, secret, &RawOptions::default()) {
        Err(e) => e,
        Ok(_) => panic!("it was opened"),
    }
}

/// Does one request to its end.
fn act(disk: &mut dyn Disk, op: Op, offset: u64, data: &mut [u8]) -> io::Result<()> {
    let mut iovecs = Iovecs::default();
    let len = data.len() as u64;
    if matches!(op, Op::Read | Op::Write { .. }) {
        // In three pieces, of which none ends where a sector does.
        let cut = [0, data.len() / 3 + 1, data.len() / 2 + 7, data.len()];
        for pair in cut.windows(2) {
            let piece = &mut data[pair[0]..pair[1]];
            iovecs.inner().push(libc::iovec {
                iov_base: piece.as_mut_ptr().cast(),
                iov_len: piece.len(),
            });
        }
    }
    let request = Request {
        tag: 0,
        op,
        offset,
        len,
        alone: true,
    };
    // SAFETY: the vectors point into `data`, which lives until the drain below is over.
    assert!(unsafe { disk.start(request, &mut iovecs) }.is_none());
    let mut done = Vec::new();
    disk.drain(&mut done);
    assert_eq!(done.len(), 1);
    done.remove(0).result
}

fn read(disk: &mut dyn Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0xee; len];
    act(disk, Op::Read, offset, &mut data).unwrap();
    data
}

fn write(disk: &mut dyn Disk, offset: u64, byte: u8, len: usize) {
    let op = Op::Write { durable: true };
    act(disk, op, offset, &mut vec![byte; len]).unwrap();
}

const M: u64 = 1 << 20;

#[test]
fn what_qemu_wrote_is_read_and_what_is_written_qemu_reads() {
    let dir = Dir::new("qemu");
    let variants = [
        ("", "aes-xts-plain64", 512),
        (",cipher-alg=aes-128", "aes-xts-plain64", 256),
        (",hash-alg=sha512", "aes-xts-plain64", 512),
        (",hash-alg=sha1", "aes-xts-plain64", 512),
        (",hash-alg=ripemd160", "aes-xts-plain64", 512),
    ];
    for (number, (options, cipher, bits)) in variants.into_iter().enumerate() {
        let name = format!("{number}.luks");
        if !dir.qemu_img(&name, options) {
            return;
        }
        dir.qemu_io(&name, &["write -P 0xa1 0 1M", "write -P 0xa2 7M 1M"]);
        let path = dir.path(&name);
        let file = File::open(&path).unwrap();
        let layout = luks::inspect(&file, file.metadata().unwrap().len()).unwrap();
        assert_eq!((layout.version, layout.slots), (1, 1));
        assert_eq!((layout.cipher.as_str(), layout.key_bits), (cipher, bits));
        // O_DIRECT too.
        for direct in [false, true] {
            let options = RawOptions {
                direct,
                ..RawOptions::default()
            };
            let mut disk = open(&path, SECRET, &options).unwrap();
            assert_eq!(disk.geometry().size, 8 * M);
            assert_eq!(read(&mut disk, 0, 1 << 20), vec![0xa1; 1 << 20]);
            assert_eq!(read(&mut disk, 7 * M + 512, 512), vec![0xa2; 512]);
            assert_eq!(read(&mut disk, 8 * M - 3072, 3072), vec![0xa2; 3072]);
            // Longer than a buffer, odd sectors, and zeroes.
            write(&mut disk, 2 * M, 0xb1, 1 << 20);
            write(&mut disk, 3 * M + 512, 0xb2, 3 * 512);
            write(&mut disk, 4 * M, 0xb3, 8192);
            let zeroes = Op::WriteZeroes {
                unmap: true,
                durable: true,
            };
            act(&mut disk, zeroes, 4 * M + 512, &mut [0; 4096]).unwrap();
            act(&mut disk, Op::Flush, 0, &mut []).unwrap();
            drop(disk);
            dir.qemu_io(
                &name,
                &[
                    "read -P 0xb1 2M 1M",
                    "read -P 0xb2 3146240 1536",
                    "read -P 0xb3 4M 512",
                    "read -P 0 4194816 4096",
                    "read -P 0xb3 4198912 3584",
                    "write -P 0 2M 3M",
                ],
            );
        }
    }
}

#[test]
fn what_is_made_here_qemu_and_cryptsetup_open() {
    let dir = Dir::new("own");
    let path = dir.path("own.luks");
    let file = File::create_new(&path).unwrap();
    file.set_len(PAYLOAD + 8 * M).unwrap();
    let passphrase = Passphrase::copy(SECRET.as_bytes()).unwrap();
    let draft = Draft {
        passphrase: &passphrase,
        time: Duration::from_millis(20),
    };
    draft.write(&file).unwrap();
    let mut disk = open(&path, SECRET, &RawOptions::default()).unwrap();
    assert_eq!(disk.geometry().size, 8 * M);
    write(&mut disk, 0, 0xc1, 4096);
    write(&mut disk, 8 * M - 512, 0xc2, 512);
    drop(disk);
    dir.qemu_io(
        "own.luks",
        &["read -P 0xc1 0 4k", "read -P 0xc2 8388096 512"],
    );
    let key = ["--test-passphrase", "--key-file", "key", "own.luks"];
    dir.run("cryptsetup", &[&["open"], &key[..]].concat());
    dir.run("cryptsetup", &["isLuks", "--type", "luks1", "own.luks"]);
    // Two containers share nothing.
    let other = File::create_new(dir.path("other.luks")).unwrap();
    other.set_len(PAYLOAD + M).unwrap();
    draft.write(&other).unwrap();
    let head = |file: &File| {
        let mut bytes = [0; 8192];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let (a, b) = (
        head(&File::open(&path).unwrap()),
        head(&File::open(dir.path("other.luks")).unwrap()),
    );
    assert_eq!(a[..40], b[..40]);
    for (from, to) in [(112, 164), (168, 204), (216, 248), (4096, 8192)] {
        assert_ne!(a[from..to], b[from..to]);
    }
}

#[test]
fn what_cryptsetup_formatted_as_version_1_is_opened() {
    let dir = Dir::new("luks1");
    File::create(dir.path("1.luks"))
        .unwrap()
        .set_len(4 << 20)
        .unwrap();
    let cost = ["--pbkdf-force-iterations", "1000", "--key-file", "key"];
    let format = [
        &["luksFormat", "-q", "--type", "luks1"],
        &cost[..],
        &["1.luks"],
    ]
    .concat();
    if !dir.run("cryptsetup", &format) {
        return;
    }
    // A second key slot, and the first one gone.
    fs::write(dir.path("second"), "other").unwrap();
    dir.run(
        "cryptsetup",
        &[&["luksAddKey"], &cost[..], &["1.luks", "second"]].concat(),
    );
    dir.run(
        "cryptsetup",
        &["luksKillSlot", "-q", "--key-file", "second", "1.luks", "0"],
    );
    let path = dir.path("1.luks");
    assert!(matches!(error(&path, SECRET), LuksError::Passphrase));
    let mut disk = open(&path, "other", &RawOptions::default()).unwrap();
    write(&mut disk, 0, 0xe1, 4096);
    drop(disk);
    fs::copy(dir.path("second"), dir.path("key")).unwrap();
    dir.qemu_io("1.luks", &["read -P 0xe1 0 4k"]);
}

/// A file of random content, encrypted in place by cryptsetup, and what was in it.
fn of_cryptsetup(dir: &Dir, name: &str, words: &[&str]) -> Option<Vec<u8>> {
    let mut content = vec![0; 4 << 20];
    vsc_devices::secret::random(&mut content).unwrap();
    let file = File::create(dir.path(name)).unwrap();
    file.set_len(40 << 20).unwrap();
    file.write_all_at(&content, 0).unwrap();
    let all = [
        &[
            "reencrypt",
            "-q",
            "--encrypt",
            "--reduce-device-size",
            "32M",
            "--key-file",
            "key",
        ][..],
        words,
        &[name],
    ];
    dir.run("cryptsetup", &all.concat()).then_some(content)
}

#[test]
fn what_cryptsetup_encrypted_is_read() {
    let dir = Dir::new("cryptsetup");
    let argon = ["--pbkdf-memory", "65536", "--pbkdf-force-iterations", "4"];
    let pbkdf2 = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let variants: [(u32, Vec<&str>); 4] = [
        (4096, [&["--sector-size", "4096"], &argon[..]].concat()),
        (
            512,
            [&["--sector-size", "512", "--pbkdf", "argon2i"], &argon[..]].concat(),
        ),
        (
            512,
            [&["--sector-size", "512", "--hash", "sha512"], &pbkdf2[..]].concat(),
        ),
        (
            2048,
            [&["--sector-size", "2048", "--key-size", "256"], &pbkdf2[..]].concat(),
        ),
    ];
    for (number, (sector, words)) in variants.into_iter().enumerate() {
        let name = format!("{number}.img");
        let all = [
            &["--type", "luks2", "--force-offline-reencrypt"],
            &words[..],
        ]
        .concat();
        let Some(content) = of_cryptsetup(&dir, &name, &all) else {
            return;
        };
        let path = dir.path(&name);
        if sector > 512 {
            assert!(matches!(
                error(&path, SECRET),
                LuksError::BlockSize { sector: s } if s == sector
            ));
        }
        let options = RawOptions {
            block: sector,
            ..RawOptions::default()
        };
        let mut disk = open(&path, SECRET, &options).unwrap();
        assert!(read(&mut disk, 0, 4 << 20) == content, "{words:?}");
        write(&mut disk, M, 0xd1, 8192);
        assert_eq!(read(&mut disk, M, 8192), vec![0xd1; 8192]);
        assert!(read(&mut disk, M + 8192, 4096) == content[(1 << 20) + 8192..][..4096]);
        if sector > 512 {
            let odd = act(&mut disk, Op::Read, 512, &mut [0; 512]).unwrap_err();
            assert_eq!(odd.raw_os_error(), Some(libc::EINVAL));
        }
        drop(disk);
        assert!(matches!(
            error_with(&path, "wrong", &options),
            LuksError::Passphrase
        ));
        // The second header does when the first is lost, and a flipped bit anywhere in both is noticed.
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let whole = {
            let mut bytes = vec![0; 32 << 10];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        file.write_all_at(&[0; 4096], 0).unwrap();
        drop(open(&path, SECRET, &options).unwrap());
        file.write_all_at(&whole, 0).unwrap();
        for at in [5000, 16384 + 5000] {
            file.write_all_at(&[whole[at] ^ 1], at as u64).unwrap();
        }
        assert!(matches!(
            error_with(&path, SECRET, &options),
            LuksError::Damaged(_)
        ));
    }
}

fn error_with(path: &Path, secret: &str, options: &RawOptions) -> LuksError {
    match open(path, secret, options) {
        Err(e) => e,
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn each_obstacle_is_named() {
    let dir = Dir::new("obstacles");
    let path = dir.path("x");
    fs::write(&path, vec![0; 4 << 20]).unwrap();
    assert!(matches!(error(&path, SECRET), LuksError::NotLuks));
    if !dir.qemu_img("x", "") {
        return;
    }
    assert!(matches!(error(&path, "wrong"), LuksError::Passphrase));
    let whole = fs::read(&path).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, changed).unwrap();
        error(&path, SECRET).to_string()
    };
    assert!(with(6, &[0, 3]).contains("version 3"));
    assert!(with(8, b"serpent\0").contains("serpent-xts-plain64"));
    assert!(with(40, b"cbc-essiv:sha256\0").contains("aes-cbc-essiv:sha256"));
    assert!(with(72, b"whirlpool\0").contains("hash that is not in this build: whirlpool"));
    assert!(with(108, &[0, 0, 0, 20]).contains("160 bits"));
    assert!(with(104, &[0; 4]).contains("data within the header"));
    assert!(with(104, &[0x7f; 4]).contains("beyond the end"));
    assert!(with(208, &[1, 2, 3, 4]).contains("state of a key slot"));
    assert!(with(208, &0xdeadu32.to_be_bytes()).contains("no key slot in use"));
    assert!(with(212, &[0xff; 4]).contains("rounds"));
    assert!(with(248, &[0xff; 4]).contains("place of a key"));
    assert!(with(252, &[0xff; 4]).contains("number of stripes"));
    // A key that is not what it was cannot be told from a wrong passphrase.
    assert!(with(5000, &[0; 64]).contains("cannot be opened with this passphrase"));
    for other in ["serpent-256", "twofish-256"] {
        let name = format!("{other}.luks");
        dir.qemu_img(&name, &format!(",cipher-alg={other}"));
        assert!(
            error(&dir.path(&name), SECRET)
                .to_string()
                .contains(&other[..7])
        );
    }
    dir.qemu_img(
        "cbc.luks",
        ",cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256",
    );
    assert!(
        error(&dir.path("cbc.luks"), SECRET)
            .to_string()
            .contains("aes-cbc-essiv:sha256")
    );
}

#[test]
fn many_requests_at_once_end_each_on_its_own() {
    let dir = Dir::new("many");
    let path = dir.path("own.luks");
    let file = File::create_new(&path).unwrap();
    file.set_len(PAYLOAD + 4 * M).unwrap();
    let passphrase = Passphrase::copy(SECRET.as_bytes()).unwrap();
    let time = Duration::from_millis(1);
    let draft = Draft {
        passphrase: &passphrase,
        time,
    };
    draft.write(&file).unwrap();
    let mut disk = open(&path, SECRET, &RawOptions::default()).unwrap();
    let mut data: Vec<Vec<u8>> = (0..64u8).map(|n| vec![n; 4096]).collect();
    let mut done = Vec::new();
    for op in [Op::Write { durable: false }, Op::Read] {
        for (tag, block) in (0u32..).zip(&mut data) {
            let mut iovecs = Iovecs::default();
            iovecs.inner().push(libc::iovec {
                iov_base: block.as_mut_ptr().cast(),
                iov_len: block.len(),
            });
            let request = Request {
                tag,
                op,
                offset: u64::from(tag) * 4096,
                len: 4096,
                alone: false,
            };
            // SAFETY: the blocks live until all has ended below.
            assert!(unsafe { disk.start(request, &mut iovecs) }.is_none());
        }
        disk.submit();
        // SAFETY: the disk keeps it open.
        let ready = unsafe { BorrowedFd::borrow_raw(disk.ready_fd().unwrap()) };
        while done.len() < 64 {
            let mut poll = libc::pollfd {
                fd: ready.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one entry, ours.
            assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1);
            disk.reap(&mut done);
        }
        let mut tags: Vec<_> = done
            .drain(..)
            .map(|c| c.result.map(|()| c.tag).unwrap())
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..64).collect::<Vec<_>>());
        for block in &mut data {
            if op != Op::Read {
                block.fill(0xff);
            }
        }
    }
    for (n, block) in data.iter().enumerate() {
        assert_eq!(block, &vec![n as u8; 4096]);
    }
    // The container holds none of it.
    let raw = fs::read(&path).unwrap();
    assert!(!raw.windows(64).any(|w| w == [7u8; 64]));
}
