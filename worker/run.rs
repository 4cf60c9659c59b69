//! The process: it greets the supervisor, starts the threads, and runs until its link closes.
//!
//! A worker has four threads. The main thread loads the engine and runs the job loop. The commands' thread cancels
//! jobs, gives them flow credit, and ends the process when the link closes. The heartbeat's thread tells the supervisor
//! that the process is alive. The encoder's thread is described in `media/encoder_thread.rs`.

use std::convert::Infallible;
use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use fastvideo_proto::ids::JobId;
use fastvideo_proto::link::{Command, Event, LINK_VERSION, LoadSpec};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::gpu_memory::GpuMemory;
use crate::job::{JobBlobs, JobOutboxes, WorkItem};
use crate::link::{CommandReceiver, EventSender, LinkError, connect};
use crate::load::load;
use crate::media::outbox::JobOutbox;

/// Where a process says how readily the kernel ends it when memory is short, and what a worker says: -1000 is never, 1000
/// is first.
const OOM_SCORE_FILE: &str = "/proc/self/oom_score_adj";
const OOM_SCORE: i32 = 500;

/// Serves the supervisor that has started this process and listens on `link`. It does not return while the link is open and the engine can
/// serve.
///
/// # Errors
/// Returns an error when the link cannot be opened, or when the engine cannot serve any more.
pub(crate) fn run(link: &str) -> anyhow::Result<ExitCode> {
    // A closed link normally ends this process. The signal ends it even if it is stopped or stuck at that moment.
    set_pdeathsig(Signal::SIGKILL).context("cannot ask to die with the supervisor")?;
    expect_to_be_killed_first();
    let (mut commands, events) = connect(link)?;
    let spec = receive_load(&mut commands)?;
    let outboxes = JobOutboxes::default();
    let gpu_memory = GpuMemory::default();
    // The channel is unbounded, since the commands' thread must never wait. The supervisor keeps it short: it sends the
    // next job only when the one before is generated.
    let (work_sender, work) = channel();
    let handler = CommandHandler {
        events: events.clone(),
        outboxes: outboxes.clone(),
        work: work_sender,
    };
    spawn("commands", move || handler.run(commands))?;
    {
        let (events, interval) = (events.clone(), spec.heartbeat_interval);
        let memory = gpu_memory.clone();
        spawn("heartbeat", move || {
            send_heartbeats(&events, &memory, interval)
        })?;
    }
    let mut jobs = match load(&spec, &events, gpu_memory) {
        Ok(jobs) => jobs,
        Err(error) => {
            // The supervisor logs the reason, once.
            let permanent = error.is_permanent();
            let message = format!("{:#}", anyhow::Error::from(error));
            events.send(Event::BootFailed { message, permanent });
            return Ok(ExitCode::FAILURE);
        }
    };
    match jobs.run(&work, &outboxes)? {}
}

/// Makes the kernel choose this process before others when memory is short: the supervisor replaces a worker, and its
/// sessions go on. A process that was made an earlier choice still is one.
fn expect_to_be_killed_first() {
    let now = fs::read_to_string(OOM_SCORE_FILE);
    let now = now.ok().and_then(|text| text.trim().parse::<i32>().ok());
    if now.is_some_and(|score| score < OOM_SCORE)
        && let Err(error) = fs::write(OOM_SCORE_FILE, OOM_SCORE.to_string())
    {
        tracing::debug!(%error, "the score for shortage of memory stays as it was");
    }
}

/// Waits for the first command and checks its version.
fn receive_load(commands: &mut CommandReceiver) -> anyhow::Result<LoadSpec> {
    match commands.next()? {
        (Command::Load(spec), _) if spec.version == LINK_VERSION => Ok(*spec),
        (Command::Load(spec), _) => bail!(LinkError::Version {
            theirs: spec.version
        }),
        (Command::Shutdown, _) => leave(),
        _ => bail!(LinkError::Unexpected("another command before Load")),
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .with_context(|| format!("cannot start the thread {name}"))?;
    Ok(())
}

/// The handler of the commands' thread: passes jobs to the job loop, and does everything else itself, immediately.
struct CommandHandler {
    events: EventSender,
    outboxes: JobOutboxes,
    work: Sender<WorkItem>,
}

impl CommandHandler {
    /// Handles commands until the link closes, then ends the process, whatever the engine is doing, because its results
    /// are no longer needed.
    fn run(self, mut commands: CommandReceiver) {
        let reason = loop {
            if let Err(reason) = self.handle_next(&mut commands) {
                break reason;
            }
        };
        tracing::debug!(%reason, "leaving");
        leave()
    }

    /// Waits for the next command and handles it.
    fn handle_next(&self, commands: &mut CommandReceiver) -> Result<(), LeaveReason> {
        match commands.next()? {
            (Command::Generate(spec), blobs) => {
                let outbox = JobOutbox::new(spec.job, spec.window, self.events.clone());
                {
                    let mut outboxes = self.outboxes.lock().expect("no holder of this lock panics");
                    outboxes.retain(|_, outbox| !outbox.is_over());
                    outboxes.insert(spec.job, outbox);
                }
                let blobs = JobBlobs::of(&spec, blobs);
                self.pass_on(WorkItem::Generate(spec, blobs))?;
            }
            (Command::Forget { session }, _) => self.pass_on(WorkItem::Forget(session))?,
            (Command::Cancel { job }, _) => {
                if let Some(outbox) = self.outbox(job) {
                    outbox.cancel();
                }
            }
            (Command::Credit { job, cost }, _) => {
                if let Some(outbox) = self.outbox(job) {
                    outbox.credit(cost);
                }
            }
            (Command::LoadAdapter(spec), _) => self.pass_on(WorkItem::LoadAdapter(spec))?,
            (Command::UnloadAdapter { name }, _) => self.pass_on(WorkItem::UnloadAdapter(name))?,
            (Command::Shutdown, _) => return Err(LeaveReason::Shutdown),
            (Command::Load(_), _) => return Err(LinkError::Unexpected("a second Load").into()),
        }
        Ok(())
    }

    fn pass_on(&self, item: WorkItem) -> Result<(), LeaveReason> {
        self.work
            .send(item)
            .map_err(|_| LeaveReason::JobLoopHasEnded)
    }

    fn outbox(&self, job: JobId) -> Option<Arc<JobOutbox>> {
        let outboxes = self.outboxes.lock().expect("no holder of this lock panics");
        outboxes.get(&job).cloned()
    }
}

/// The reason why the process ends.
#[derive(Debug, thiserror::Error)]
enum LeaveReason {
    #[error("asked to leave")]
    Shutdown,
    #[error("the job loop has ended")]
    JobLoopHasEnded,
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Ends the process without the exit handlers of C libraries: the engine may be deep in a step, for which they would destroy
/// what it computes with, and nothing waits for it any more.
#[expect(unsafe_code, reason = "the standard library always runs the handlers")]
fn leave() -> ! {
    // SAFETY: it takes a number and does not return.
    unsafe { nix::libc::_exit(0) }
}

/// The heartbeat's thread: tells the supervisor at this interval that the process is alive, and the memory in use.
fn send_heartbeats(events: &EventSender, gpu_memory: &GpuMemory, interval: Duration) {
    let (_never, silence) = channel::<Infallible>();
    loop {
        events.send(Event::Heartbeat {
            resident_bytes: resident_bytes().unwrap_or(0),
            gpu_bytes: gpu_memory.get(),
        });
        let _ = silence.recv_timeout(interval);
    }
}

/// Returns the resident set size of this process, in bytes.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * page_size.cast_unsigned())
}
