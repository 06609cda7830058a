use std::path::PathBuf;

use proptest::prelude::*;

use super::super::engine::Call;
use super::*;

mod opening;
use opening::on_small_tmpfs;

/// A file that is removed again. `dir`: `/dev/shm` for memory, the target directory for a real file system.
struct Image(PathBuf);

impl Image {
    fn new(dir: &str, len: u64) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let program = std::env::current_exe().unwrap();
        let dir = if dir.is_empty() {
            program.parent().unwrap()
        } else {
            Path::new(dir)
        };
        let path = dir.join(format!("vsc-raw-{}-{n}", std::process::id()));
        File::create(&path).unwrap().set_len(len).unwrap();
        Self(path)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const MEMORY: &str = "/dev/shm";
/// Where the test programs lie: not in memory on any machine that has a disk to build on.
const DISK: &str = "";

fn direct() -> RawOptions {
    RawOptions {
        direct: true,
        ..RawOptions::default()
    }
}

fn read_only() -> RawOptions {
    RawOptions {
        read_only: true,
        ..RawOptions::default()
    }
}

/// Runs one request to its end.
fn run(
    disk: &mut RawFile,
    op: Op,
    offset: u64,
    len: u64,
    buffer: &mut [u8],
    alone: bool,
) -> io::Result<()> {
    let mut iovecs = Iovecs::default();
    if !buffer.is_empty() {
        let iov_base = buffer.as_mut_ptr().cast();
        iovecs.inner().push(libc::iovec {
            iov_base,
            iov_len: buffer.len(),
        });
    }
    let request = Request {
        tag: 3,
        op,
        offset,
        len,
        alone,
    };
    // SAFETY: the buffer outlives the drain below.
    if let Some(result) = unsafe { disk.start(request, &mut iovecs) } {
        return result;
    }
    disk.submit();
    let mut done = Vec::new();
    disk.drain(&mut done);
    assert_eq!(done.len(), 1);
    let done = done.pop().unwrap();
    assert_eq!(done.tag, 3);
    done.result
}

#[test]
fn a_full_file_system_fails_what_does_not_fit() {
    on_small_tmpfs(0, |image| {
        let mut disk = RawFile::open(image, RawOptions::default()).unwrap();
        let mut data = vec![1; 256 << 10];
        let op = Op::Write { durable: false };
        let error = run(&mut disk, op, 0, 256 << 10, &mut data, true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        run(&mut disk, Op::Read, 0, 4096, &mut data[..4096], true).unwrap();
    });
}

#[test]
fn the_tail_of_a_read_only_image_reads_as_zeroes() {
    for dir in [MEMORY, DISK] {
        for direct in [false, true] {
            let image = Image::new(dir, 0);
            std::fs::write(&image.0, vec![5; 4196]).unwrap();
            let options = RawOptions {
                read_only: true,
                direct,
                ..RawOptions::default()
            };
            let mut disk = RawFile::open(&image.0, options).unwrap();
            assert!(disk.geometry().size.is_multiple_of(512) && disk.geometry().size >= 4608);
            for alone in [true, false] {
                let mut bounce = Buffer::new(4096, 4096);
                let buffer = &mut bounce.bytes()[..1024];
                buffer.fill(0xff);
                run(&mut disk, Op::Read, 3584, 1024, buffer, alone).unwrap();
                let (data, tail) = buffer.split_at(4196 - 3584);
                assert!(data.iter().all(|&b| b == 5) && tail.iter().all(|&b| b == 0));
            }
        }
    }
}

#[test]
fn an_image_cut_short_fails_reads_instead_of_inventing_data() {
    for dir in [MEMORY, DISK] {
        let image = Image::new(dir, 8192);
        let mut disk = RawFile::open(&image.0, RawOptions::default()).unwrap();
        File::options()
            .write(true)
            .open(&image.0)
            .unwrap()
            .set_len(4096)
            .unwrap();
        let mut buffer = [0; 1024];
        for alone in [true, false] {
            let error = run(&mut disk, Op::Read, 3584, 1024, &mut buffer, alone).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        }
    }
}

#[test]
fn descriptors_are_blocking_again_and_direct_where_asked() {
    let flags = |disk: &RawFile| {
        // SAFETY: takes no further argument.
        unsafe { libc::fcntl(disk.file.as_raw_fd(), libc::F_GETFL) }
    };
    let image = Image::new(DISK, 4096);
    let plain = RawFile::open(&image.0, RawOptions::default()).unwrap();
    assert_eq!(flags(&plain) & (libc::O_NONBLOCK | libc::O_DIRECT), 0);
    let beside = RawOptions {
        lock: Lock::Off,
        ..direct()
    };
    let unbuffered = RawFile::open(&image.0, beside).unwrap();
    assert_eq!(
        flags(&unbuffered) & (libc::O_NONBLOCK | libc::O_DIRECT),
        libc::O_DIRECT
    );
    assert!(unbuffered.align.offset >= 512 && unbuffered.align.memory <= 4096);
}

#[test]
fn nothing_is_set_up_until_something_has_to_wait() {
    let image = Image::new(MEMORY, 8 << 20);
    let mut disk = RawFile::open(&image.0, RawOptions::default()).unwrap();
    let mut buffer = vec![1; 4096];
    run(
        &mut disk,
        Op::Write { durable: true },
        0,
        4096,
        &mut buffer,
        false,
    )
    .unwrap();
    run(&mut disk, Op::Read, 0, 4096, &mut buffer, false).unwrap();
    run(&mut disk, Op::Flush, 0, 0, &mut [], false).unwrap();
    assert!(disk.ready_fd().is_none());
    let mut long = vec![2; 4 << 20];
    run(
        &mut disk,
        Op::Write { durable: false },
        0,
        4 << 20,
        &mut long,
        true,
    )
    .unwrap();
    let fd = disk
        .ready_fd()
        .expect("long requests do not hold the loop up");
    long.fill(0);
    run(&mut disk, Op::Read, 0, 4 << 20, &mut long, true).unwrap();
    assert!(long.iter().all(|&b| b == 2));
    assert_eq!(disk.ready_fd(), Some(fd));
}

#[test]
fn without_any_engine_requests_still_run() {
    let image = Image::new(MEMORY, 8 << 20);
    let mut disk = RawFile::open(&image.0, RawOptions::default()).unwrap();
    disk.engineless = true;
    let mut long = vec![2; 4 << 20];
    run(
        &mut disk,
        Op::Write { durable: true },
        0,
        4 << 20,
        &mut long,
        false,
    )
    .unwrap();
    run(
        &mut disk,
        Op::WriteZeroes {
            unmap: true,
            durable: true,
        },
        0,
        1 << 20,
        &mut [],
        false,
    )
    .unwrap();
    let bytes = image.bytes();
    assert!(
        bytes[..1 << 20].iter().all(|&b| b == 0) && bytes[1 << 20..4 << 20].iter().all(|&b| b == 2)
    );
}

#[test]
fn zeroes_are_written_where_the_file_system_cannot_zero_a_range() {
    for dir in [MEMORY, DISK] {
        for (able, unmap) in [(true, true), (true, false), (false, true), (false, false)] {
            let image = Image::new(dir, 0);
            std::fs::write(&image.0, vec![5; 4 << 20]).unwrap();
            let mut disk = RawFile::open(&image.0, RawOptions::default()).unwrap();
            disk.able = Abilities {
                punch: able,
                zero: able,
            };
            let op = Op::WriteZeroes {
                unmap,
                durable: true,
            };
            run(&mut disk, op, 512, (3 << 20) - 1024, &mut [], false).unwrap();
            let bytes = image.bytes();
            let zeroes = bytes.iter().filter(|&&b| b == 0).count();
            assert_eq!(zeroes, (3 << 20) - 1024, "{dir} {able} {unmap}");
            assert!(
                bytes[..512]
                    .iter()
                    .chain(&bytes[(3 << 20) - 512..])
                    .all(|&b| b == 5)
            );
        }
    }
}

#[test]
fn discards_give_space_back_and_are_mere_advice() {
    let blocks =
        |image: &Image| std::os::unix::fs::MetadataExt::blocks(&image.0.metadata().unwrap());
    for dir in [MEMORY, DISK] {
        let image = Image::new(dir, 0);
        std::fs::write(&image.0, vec![5; 1 << 20]).unwrap();
        File::open(&image.0).unwrap().sync_all().unwrap();
        let before = blocks(&image);
        let mut disk = RawFile::open(&image.0, RawOptions::default()).unwrap();
        run(&mut disk, Op::Discard, 0, 512 << 10, &mut [], true).unwrap();
        assert!(
            blocks(&image) <= before - 1000,
            "{dir}: {before} -> {}",
            blocks(&image)
        );
        assert_eq!(image.bytes().len(), 1 << 20);
    }
    let mut task = Task::default();
    let mut able = Abilities {
        punch: true,
        zero: true,
    };
    let request = Request {
        tag: 0,
        op: Op::Discard,
        offset: 0,
        len: 512,
        alone: true,
    };
    task.begin(&request, &mut Iovecs::default(), 512, able);
    assert!(task.call().is_ok());
    assert!(matches!(
        task.advance(-libc::EOPNOTSUPP, &mut able),
        Next::Done(Ok(()))
    ));
    assert!(!able.punch);
    task.begin(&request, &mut Iovecs::default(), 512, able);
    assert!(matches!(
        task.advance(-libc::EIO, &mut able),
        Next::Done(Err(_))
    ));
}

#[test]
fn short_transfers_go_on_where_they_stopped() {
    let mut able = Abilities {
        punch: true,
        zero: true,
    };
    let vectors = |n: usize| {
        let base = 0x10_0000;
        let one = move |i| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(base + i * 4096),
            iov_len: 4096,
        };
        (0..n).map(one)
    };
    let mut iovecs = Iovecs::default();
    iovecs.inner().extend(vectors(1500));
    let len = 1500 * 4096;
    let request = Request {
        tag: 0,
        op: Op::Write { durable: true },
        offset: 512,
        len,
        alone: true,
    };
    let mut task = Task::default();
    task.begin(&request, &mut iovecs, 1 << 40, able);
    let expect = |task: &mut Task, want: (u64, u32, usize, usize)| match task.call().unwrap() {
        Call::Write {
            iov,
            count,
            offset,
            durable: true,
        } => {
            // SAFETY: the task's own vectors.
            let first = unsafe { *iov };
            assert_eq!((offset, count, first.iov_base.addr(), first.iov_len), want);
        }
        other => panic!("{other:?}"),
    };
    expect(&mut task, (512, 1024, 0x10_0000, 4096));
    assert!(matches!(task.advance(4096 + 100, &mut able), Next::Call));
    expect(&mut task, (512 + 4196, 1024, 0x10_1064, 3996));
    assert!(matches!(task.advance(-libc::EINTR, &mut able), Next::Call));
    assert!(matches!(task.advance(1400 * 4096, &mut able), Next::Call));
    expect(
        &mut task,
        (
            512 + 1401 * 4096 + 100,
            99,
            0x10_0000 + 1401 * 4096 + 100,
            3996,
        ),
    );
    assert!(matches!(
        task.advance(99 * 4096 - 100, &mut able),
        Next::Done(Ok(()))
    ));
    assert!(
        matches!(task.advance(1, &mut able), Next::Done(Err(_))),
        "more than was asked for"
    );
}

/// What to do, first sector, sectors, misalignment in memory, whether alone; each taken modulo what is possible.
type Step = (u8, u16, u16, u16, bool);

fn model(dir: &'static str, direct: bool, engine: EngineChoice) -> impl Fn(Vec<Step>) {
    move |steps| {
        const SIZE: usize = 64 << 10;
        let image = Image::new(dir, SIZE as u64);
        let options = RawOptions {
            direct,
            engine,
            ..RawOptions::default()
        };
        let mut disk = RawFile::open(&image.0, options).unwrap();
        let mut expected = vec![0u8; SIZE];
        for (i, (kind, start, len, skew, alone)) in steps.into_iter().enumerate() {
            let start = usize::from(start) % SIZE / 512 * 512;
            let len = (usize::from(len) % (SIZE - start + 1)) / 512 * 512;
            let skew = usize::from(skew) % 512;
            let mut memory = Buffer::new(2 * SIZE, 4096);
            let buffer = &mut memory.bytes()[skew..skew + len];
            let (offset, bytes) = (start as u64, len as u64);
            match kind % 5 {
                0 | 1 => {
                    buffer.fill(i as u8 + 1);
                    expected[start..start + len].copy_from_slice(buffer);
                    let op = Op::Write {
                        durable: kind % 5 == 1,
                    };
                    run(&mut disk, op, offset, bytes, buffer, alone).unwrap();
                }
                2 => {
                    let op = Op::WriteZeroes {
                        unmap: alone,
                        durable: false,
                    };
                    expected[start..start + len].fill(0);
                    run(&mut disk, op, offset, bytes, &mut [], alone).unwrap();
                }
                3 => run(&mut disk, Op::Flush, 0, 0, &mut [], alone).unwrap(),
                _ => {
                    run(&mut disk, Op::Read, offset, bytes, buffer, alone).unwrap();
                    assert!(*buffer == expected[start..start + len]);
                }
            }
        }
        drop(disk);
        assert!(image.bytes() == expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Sectors at any address in memory, whatever O_DIRECT demands.
    #[test]
    fn any_sectors_from_any_address(
        steps in prop::collection::vec(any::<Step>(), 1..40)
    ) {
        for dir in [MEMORY, DISK] {
            for direct in [false, true] {
                for engine in [EngineChoice::Auto, EngineChoice::Threads] {
                    model(dir, direct, engine)(steps.clone());
                }
            }
        }
    }
}

#[test]
fn stores_that_demand_whole_pages_get_them() {
    let image = Image::new(DISK, 64 << 10);
    let mut disk = RawFile::open(&image.0, direct()).unwrap();
    disk.align = Align {
        memory: 512,
        offset: 4096,
    };
    let mut memory = Buffer::new(1 << 20, 4096);
    let mut expected = vec![0u8; 64 << 10];
    for (i, (start, len)) in [
        (512, 512),
        (3584, 1024),
        (0, 4096),
        (4608, 12288),
        (8192, 20480),
    ]
    .into_iter()
    .enumerate()
    {
        let buffer = &mut memory.bytes()[..len];
        buffer.fill(i as u8 + 1);
        expected[start..start + len].fill(i as u8 + 1);
        let op = Op::Write {
            durable: i % 2 == 0,
        };
        run(&mut disk, op, start as u64, len as u64, buffer, true).unwrap();
        assert!(image.bytes() == expected);
        let buffer = &mut memory.bytes()[..len + 1024];
        run(
            &mut disk,
            Op::Read,
            start as u64,
            len as u64 + 1024,
            buffer,
            true,
        )
        .unwrap();
        assert!(*buffer == expected[start..start + len + 1024]);
    }
}
