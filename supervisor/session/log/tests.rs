use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fastvideo_proto::ids::{GpuId, WorkerId};
use fastvideo_proto::job::{Stage, VideoFormat};
use tempfile::TempDir;

use super::signature::{PublicKey, Signer, Verdict, verify};
use super::*;
use crate::session::SessionState;
use crate::small_disk::SmallDisk;
use crate::tenant::Tenant;

const PATIENCE: Duration = Duration::from_secs(60);

fn config(dir: &Path) -> Config {
    Config {
        dir: dir.to_owned(),
        max_file_bytes: 1 << 20,
        max_total_bytes: 1 << 30,
        max_age: Duration::from_secs(3600),
        signing_key: None,
        setup: setup(),
    }
}

fn setup() -> Setup {
    Setup {
        engine: "synthetic".to_owned(),
        format: VideoFormat {
            width: 64,
            height: 64,
            num_frames: 8,
            fps: 24,
        },
        encoder: Encoder {
            video_codec: "libx264".to_owned(),
            crf: 23,
            fragment_ms: 250.0,
            audio_bit_rate: 128_000,
            jpeg_quality: 85,
        },
    }
}

fn step(step: u32) -> LogEvent {
    LogEvent::Step {
        segment_idx: 0,
        attempt: 1,
        stage: Stage::Denoise,
        step,
        total_steps: 8,
        ms: 1.5,
    }
}

/// The lines without those that are signatures.
fn read(path: &Path) -> Vec<Line> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let is_signature = |line: &Line| matches!(line.event, LogEvent::Signed(_));
    lines.filter(|line| !is_signature(line)).collect()
}

#[tokio::test]
async fn lines_are_in_order_and_private() {
    let folder = TempDir::new().unwrap();
    let dir = folder.path().join("a/b");
    let logs = Logs::open(Some(config(&dir)));
    let (one, two) = (SessionId::random(), SessionId::random());
    let (log_one, log_two) = (
        logs.session(&one, &Tenant::default()),
        logs.session(&two, &Tenant::default()),
    );
    for n in 1..=100 {
        log_one.record(|| step(n));
        log_two.record(|| step(n + 1000));
    }
    logs.close(PATIENCE).await;
    for (session, first) in [(one, 1), (two, 1001)] {
        let path = config(&dir).file(session.as_str());
        let lines = read(&path);
        assert!(lines.iter().all(|line| line.session_id == session.as_str()));
        assert!(lines.is_sorted_by(|a, b| a.ts <= b.ts));
        let events: Vec<LogEvent> = lines.into_iter().map(|line| line.event).collect();
        assert_eq!(events, (first..first + 100).map(step).collect::<Vec<_>>());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let mode = fs::metadata(&dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn nothing_is_made_where_no_log_is_kept() {
    let log = Logs::open(None).session(&SessionId::random(), &Tenant::default());
    log.record(|| panic!("nobody reads it"));
}

#[test]
fn events_are_read_as_they_were_written() {
    let events = [
        step(3),
        LogEvent::Message {
            r#type: "leave".into(),
            bytes: 16,
        },
        LogEvent::State {
            from: SessionState::Active,
            to: SessionState::Complete,
        },
        LogEvent::PromptEnhanced {
            original_prompt: "a fox".to_owned(),
            prompt: "a red fox".to_owned(),
            by: Llm {
                provider: "groq".to_owned(),
                model: "m".to_owned(),
                latency_ms: 0.1 + 0.2,
                fallback_used: true,
            },
        },
        LogEvent::Fault {
            segment_idx: 1,
            attempt: 2,
            worker_id: WorkerId::new(GpuId(0), 1),
            started: true,
            reason: "killed by signal 9 \"x\"\n".to_owned(),
        },
    ];
    let buffer = Buffer::new("one", &Tenant::default());
    let mut lines = Vec::new();
    for event in &events {
        buffer.line(event, &mut lines);
    }
    let text = String::from_utf8(lines).unwrap();
    assert_eq!(text.lines().count(), events.len());
    for (line, event) in text.lines().zip(events) {
        let read: Line = serde_json::from_str(line).unwrap();
        assert_eq!(
            (read.session_id.as_str(), read.event),
            (&*buffer.session, event)
        );
    }
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(first["event"], "step");
    assert_eq!(first["payload"]["stage"], "denoise");
}

/// Logs that nobody writes.
fn unattended() -> Arc<Shared> {
    Arc::new(Shared {
        queue: Queue::default(),
        lost: AtomicU64::new(0),
        setup: setup(),
        done: Mutex::new(None),
    })
}

/// Writes what there is.
fn write_all(shared: &Arc<Shared>, config: Config) {
    shared.queue.close();
    Writer::new(config, shared.clone()).run();
}

#[test]
fn what_finds_no_room_is_counted_and_the_file_says_so() {
    let folder = TempDir::new().unwrap();
    let shared = unattended();
    let logs = Logs(Some(shared.clone()));
    let (session, other) = (SessionId::random(), SessionId::random());
    let (log, other_log) = (
        logs.session(&session, &Tenant::default()),
        logs.session(&other, &Tenant::default()),
    );
    for n in 0..10_000 {
        log.record(|| step(n));
    }
    other_log.record(|| step(1));
    let waiting = lock(&log.0.as_ref().unwrap().buffer.content).lines.len();
    assert!((MAX_WAITING..MAX_WAITING + 1000).contains(&waiting));
    write_all(&shared, config(folder.path()));
    let lines = read(&config(folder.path()).file(session.as_str()));
    let (last, events) = lines.split_last().unwrap();
    assert!(
        events
            .iter()
            .zip(0..)
            .all(|(line, n)| line.event == step(n))
    );
    let missing = 10_000 - events.len() as u64;
    assert_eq!(last.event, LogEvent::Dropped { events: missing });
    assert_eq!(logs.events_lost(), Some(missing));
    // One session that says too much costs no other one anything.
    assert_eq!(read(&config(folder.path()).file(other.as_str())).len(), 1);
}

#[tokio::test]
async fn a_full_disk_costs_lines_and_nothing_else() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let ballast = disk.path().join("ballast");
    let fill = || {
        let mut file = fs::File::create(&ballast).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    };
    let logs = Logs::open(Some(config(disk.path())));
    let session = SessionId::random();
    let log = logs.session(&session, &Tenant::default());
    let path = config(disk.path()).file(session.as_str());
    let wait_until = async |what: &dyn Fn() -> bool| {
        let waiting = async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap();
    };
    log.record(|| step(0));
    wait_until(&|| path.exists() && read(&path).len() == 1).await;
    fill();
    // More than what is left of the file's last content.
    for n in 1..=100 {
        log.record(|| step(n));
    }
    let lost = || logs.events_lost().unwrap();
    wait_until(&|| lost() > 0 && lost() + read(&path).len() as u64 == 101).await;
    let kept = read(&path).len();
    fs::remove_file(&ballast).unwrap();
    log.record(|| step(101));
    logs.close(PATIENCE).await;
    let lines = read(&path);
    assert_eq!(lines[kept].event, step(101));
    assert_eq!(lines[kept + 1].event, LogEvent::Dropped { events: lost() });
    assert_eq!(lines.len(), kept + 2);
    assert_eq!(lost() + kept as u64, 101);
}

#[test]
fn a_file_that_has_grown_is_set_aside() {
    let folder = TempDir::new().unwrap();
    let small = Config {
        max_file_bytes: 2000,
        ..config(folder.path())
    };
    let session = SessionId::random();
    let mut all = Vec::new();
    for round in 0..3 {
        let shared = unattended();
        let log = Logs(Some(shared.clone())).session(&session, &Tenant::default());
        for n in 0..6 {
            log.record(|| step(round * 6 + n));
        }
        write_all(&shared, small.clone());
        all.push(read(&small.file(session.as_str())));
    }
    let aside = folder.path().join(format!("session-{session}.1.jsonl"));
    let steps =
        |lines: &[Line]| -> Vec<LogEvent> { lines.iter().map(|l| l.event.clone()).collect() };
    // Each round fits a file, two do not.
    assert_eq!(steps(&all[2]), (12..18).map(step).collect::<Vec<_>>());
    assert_eq!(steps(&read(&aside)), (6..12).map(step).collect::<Vec<_>>());
    // And the key.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn half_a_line_of_a_killed_server_is_cut_off() {
    let folder = TempDir::new().unwrap();
    let config = config(folder.path());
    let session = SessionId::random();
    let path = config.file(session.as_str());
    for (left, kept) in [("", ""), ("a\n", "a\n"), ("a\nb", "a\n"), ("a", "")] {
        fs::write(&path, left).unwrap();
        let mut file = files::LogFile::open(session.as_str(), &config, None).unwrap();
        file.append(b"next\n").unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            format!("{kept}next\n"),
            "{left:?}"
        );
    }
}

#[test]
fn files_have_harmless_names_whatever_the_session_is_called() {
    let config = config(Path::new("/log"));
    let long = "x".repeat(300);
    for (id, name) in [
        ("0123abcdef", "session-0123abcdef.jsonl"),
        ("a-B_9", "session-a-B_9.jsonl"),
        ("../../etc/passwd", "session-______etc_passwd.jsonl"),
        ("a.1", "session-a_1.jsonl"),
        ("", "session-.jsonl"),
        ("a b\n\0c", "session-a_b__c.jsonl"),
        ("größe", "session-gr__e.jsonl"),
    ] {
        assert_eq!(config.file(id), Path::new("/log").join(name), "{id:?}");
    }
    let path = config.file(&long);
    assert!(path.file_name().unwrap().len() < 255);
}

#[test]
fn old_files_go_by_age_and_by_what_all_of_them_take() {
    let check = |max_total_bytes, max_age, stay: &[&str]| {
        let folder = TempDir::new().unwrap();
        let hour = Duration::from_secs(3600);
        let now = SystemTime::now();
        for (name, age) in [
            ("session-a.jsonl", 5),
            ("session-b.1.jsonl", 4),
            ("session-c.jsonl", 3),
            ("session-d.jsonl", 2),
            ("other.jsonl", 9),
            ("session-e.txt", 9),
        ] {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_len(1000).unwrap();
            file.set_modified(now - hour * age).unwrap();
        }
        let config = Config {
            max_total_bytes,
            max_age,
            ..config(folder.path())
        };
        let open = folder.path().join("session-a.jsonl");
        files::tidy_up(&config, |path| path == open);
        let left = fs::read_dir(folder.path()).unwrap();
        let mut left: Vec<_> = left
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let others = ["other.jsonl", "session-e.txt", "session-a.jsonl"];
        let mut expected = [&others, stay].concat();
        expected.sort_unstable();
        assert_eq!(left, expected);
    };
    let (day, long) = (Duration::from_secs(86_400), 1 << 30);
    check(
        long,
        day,
        &["session-b.1.jsonl", "session-c.jsonl", "session-d.jsonl"],
    );
    check(long, day / 8, &["session-d.jsonl"]);
    check(3000, day, &["session-c.jsonl", "session-d.jsonl"]);
    check(0, day, &[]);
}

/// Writes a part of a session, as a server does from the session's opening to its close.
fn write_part(config: &Config, session: &SessionId, steps: std::ops::Range<u32>) {
    let shared = unattended();
    let log = Logs(Some(shared.clone())).session(session, &Tenant::default());
    for n in steps {
        log.record(|| step(n));
    }
    drop(log);
    write_all(&shared, config.clone());
}

/// A file that two servers of a folder have written in turn, and the key.
fn two_parts(folder: &Path) -> (std::path::PathBuf, PublicKey) {
    let (config, session) = (config(folder), SessionId::random());
    write_part(&config, &session, 0..3);
    write_part(&config, &session, 3..5);
    let key = Signer::open(folder).unwrap().key();
    (config.file(session.as_str()), key)
}

#[test]
fn a_file_is_signed_whenever_its_session_closes() {
    let folder = TempDir::new().unwrap();
    let (path, key) = two_parts(folder.path());
    let bytes = fs::read(&path).unwrap();
    assert_eq!(verify(&bytes), Verdict::Signed { keys: vec![key] });
    let lines: Vec<Line> = (bytes.split(|&byte| byte == b'\n'))
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    let signatures: Vec<_> = (lines.iter())
        .filter_map(|line| match &line.event {
            LogEvent::Signed(signature) => Some(signature),
            _ => None,
        })
        .collect();
    assert_eq!(signatures.len(), 2);
    assert!(signatures.iter().all(|signature| signature.from == 0));
    let mode = fs::metadata(folder.path().join("signing.key")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}

#[test]
fn any_changed_byte_is_told_with_the_lines_that_it_may_be_in() {
    let folder = TempDir::new().unwrap();
    let (path, _) = two_parts(folder.path());
    let bytes = fs::read(&path).unwrap();
    // Three steps and a signature, two steps and a signature.
    for (line, changed) in [(1, 1..=4), (3, 1..=4), (5, 5..=7), (6, 5..=7)] {
        let mut text: Vec<Vec<u8>> = bytes
            .split_inclusive(|&byte| byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        let at = text[line - 1].iter().rposition(|&byte| byte == b'5');
        text[line - 1][at.unwrap()] = b'6';
        let verdict = verify(&text.concat());
        assert_eq!(verdict, Verdict::Changed { lines: changed }, "line {line}");
    }
    let end = bytes.len() - 1;
    let torn = verify(&bytes[..end - 20]);
    assert_eq!(torn, Verdict::Unsigned { lines: 5..=7 });
    assert_eq!(verify(b""), Verdict::Unsigned { lines: 1..=1 });
    assert_eq!(verify(b"a\nb\n"), Verdict::Unsigned { lines: 1..=2 });
}

#[test]
fn nobody_has_a_changed_file_signed_by_resuming_its_session() {
    let folder = TempDir::new().unwrap();
    let (config, session) = (config(folder.path()), SessionId::random());
    let path = config.file(session.as_str());
    write_part(&config, &session, 0..3);
    let text = fs::read_to_string(&path).unwrap();
    let (steps, _) = text.split_at(text.find("\"signed\"").unwrap());
    let steps = &steps[..=steps.rfind('\n').unwrap()];
    for left in [
        // Changed, with and without the signature that tells so; and what a killed server leaves.
        text.replacen("1.5", "2.5", 1),
        steps.replacen("1.5", "2.5", 1),
        steps.to_owned(),
    ] {
        fs::write(&path, &left).unwrap();
        write_part(&config, &session, 3..5);
        let bytes = fs::read(&path).unwrap();
        let lines = 1..=left.lines().count();
        let verdict = verify(&bytes);
        let expected = match left.contains("\"signed\"") {
            true => Verdict::Changed { lines },
            false => Verdict::Unsigned { lines },
        };
        assert_eq!(verdict, expected, "{left}");
    }
}

#[test]
fn keys_are_named_by_their_digits_or_by_files() {
    let folder = TempDir::new().unwrap();
    let key = Signer::open(folder.path()).unwrap().key();
    let private = folder.path().join("signing.key");
    assert_eq!(PublicKey::named(&key.to_string()).unwrap(), key);
    assert_eq!(PublicKey::named(private.to_str().unwrap()).unwrap(), key);
    let digits = folder.path().join("digits");
    fs::write(&digits, format!("{key}\n")).unwrap();
    assert_eq!(PublicKey::named(digits.to_str().unwrap()).unwrap(), key);
    // From RFC 8410.
    let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    let file = folder.path().join("public.pem");
    fs::write(&file, public).unwrap();
    let key = PublicKey::named(file.to_str().unwrap()).unwrap();
    assert_eq!(
        key.to_string(),
        "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1"
    );
    for bad in ["", "abc", "/nowhere", &"g".repeat(64)] {
        assert!(PublicKey::named(bad).is_err(), "{bad}");
    }
    assert!(Signer::read(&digits).is_err());
}
