//! The GPUs to use: parses the operator's specification and resolves it on this machine.

use std::collections::HashSet;
use std::path::PathBuf;
use std::str::FromStr;

use fastvideo_proto::ids::GpuId;

use super::super::Gpu;
use crate::engines::config::MAX_GPUS;
use crate::settings::Surroundings;

/// A specification of GPUs, as the operator wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum GpuSpec {
    Count(u32),
    All,
    /// The listed GPUs. Ordinals are those of the machine, whatever `CUDA_VISIBLE_DEVICES` says here.
    List(Vec<Device>),
}

/// One entry of a list or of `CUDA_VISIBLE_DEVICES`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Device {
    Ordinal(u32),
    /// A UUID, `GPU-…` or `MIG-…`; the driver accepts unique prefixes too.
    Id(String),
}

/// The reason why a specification names no GPUs. The messages continue after the key's name.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum GpuError {
    #[error("must be a count, `all`, or a list such as `0,2`, given nothing")]
    Empty,
    #[error("must be a count from 1 to {MAX_GPUS}, given {0}")]
    Count(u64),
    #[error("may list at most {MAX_GPUS} GPUs, given {0}")]
    TooMany(usize),
    #[error(
        "must be a count, `all`, or a list of ordinals, `GPU-…` UUIDs and `MIG-…` ids, given `{0}`"
    )]
    NotADevice(String),
    #[error("names `{0}` twice")]
    Duplicate(String),
    #[error("is `all`, but CUDA_VISIBLE_DEVICES={0:?} leaves none")]
    Hidden(String),
    #[error(
        "is `all`, but this machine shows no GPU (no /dev/nvidia0, nothing in /proc/driver/nvidia/gpus)"
    )]
    NoneFound,
    #[error("asks for {wanted} GPUs, but CUDA_VISIBLE_DEVICES={visible:?} leaves {found}")]
    TooFew {
        wanted: u32,
        visible: String,
        found: usize,
    },
}

impl FromStr for GpuSpec {
    type Err = GpuError;

    fn from_str(text: &str) -> Result<Self, GpuError> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("all") {
            return Ok(Self::All);
        }
        if let Ok(count) = text.parse::<u64>() {
            return match u32::try_from(count) {
                Ok(count @ 1..=MAX_GPUS) => Ok(Self::Count(count)),
                _ => Err(GpuError::Count(count)),
            };
        }
        let devices = devices(text)?;
        match devices.len() {
            0 => Err(GpuError::Empty),
            n if n > MAX_GPUS as usize => Err(GpuError::TooMany(n)),
            _ => Ok(Self::List(devices)),
        }
    }
}

impl FromStr for Device {
    type Err = GpuError;

    fn from_str(text: &str) -> Result<Self, GpuError> {
        let is_id = |rest: &str| {
            let id_byte = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'/';
            !rest.is_empty() && rest.bytes().all(id_byte)
        };
        match (text.parse(), text.split_at_checked(4)) {
            (Ok(ordinal), _) => Ok(Self::Ordinal(ordinal)),
            (_, Some(("GPU-" | "MIG-", rest))) if is_id(rest) => Ok(Self::Id(text.to_owned())),
            _ => Err(GpuError::NotADevice(text.to_owned())),
        }
    }
}

/// Parses a list. A trailing comma is allowed, a duplicate device is not.
fn devices(text: &str) -> Result<Vec<Device>, GpuError> {
    let text = text.strip_suffix(',').unwrap_or(text);
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut seen = HashSet::new();
    let mut devices = Vec::new();
    for item in text.split(',').map(str::trim) {
        if !seen.insert(item.to_ascii_lowercase()) {
            return Err(GpuError::Duplicate(item.to_owned()));
        }
        devices.push(item.parse()?);
    }
    Ok(devices)
}

/// The facts about this machine's GPUs.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// The value of `CUDA_VISIBLE_DEVICES`, which bounds counts and `all`.
    pub(super) cuda_visible_devices: Option<String>,
    /// The root of the file system, `/` except in tests.
    pub(super) root: PathBuf,
}

impl Machine {
    pub(super) fn around(surroundings: &Surroundings) -> Self {
        Self {
            cuda_visible_devices: surroundings
                .variable("CUDA_VISIBLE_DEVICES")
                .map(str::to_owned),
            root: surroundings.root.clone(),
        }
    }

    /// Returns the GPUs of a specification, for an engine that needs them.
    pub(super) fn gpus(&self, spec: &GpuSpec) -> Result<Vec<Gpu>, GpuError> {
        let (GpuSpec::Count(wanted), Some(visible)) = (spec, &self.cuda_visible_devices) else {
            return self.places(spec);
        };
        let mut found = devices(visible)?;
        if found.len() < *wanted as usize {
            return Err(GpuError::TooFew {
                wanted: *wanted,
                visible: visible.clone(),
                found: found.len(),
            });
        }
        found.truncate(*wanted as usize);
        Ok(numbered(&found))
    }

    /// Returns the slots of a specification, for an engine that needs no GPU: a count is taken as it is.
    pub(super) fn places(&self, spec: &GpuSpec) -> Result<Vec<Gpu>, GpuError> {
        match spec {
            GpuSpec::Count(count) => Ok(first(*count)),
            GpuSpec::List(devices) => Ok(numbered(devices)),
            GpuSpec::All => self.all(),
        }
    }

    fn all(&self) -> Result<Vec<Gpu>, GpuError> {
        if let Some(visible) = &self.cuda_visible_devices {
            return match devices(visible) {
                Ok(found) if !found.is_empty() => Ok(numbered(&found)),
                // This includes values such as -1, which are used to hide all GPUs.
                _ => Err(GpuError::Hidden(visible.clone())),
            };
        }
        // In a container that sees only some GPUs, device files keep the machine's numbers, but CUDA counts the visible
        // ones from 0.
        let files = self.count("dev", |name| {
            name.strip_prefix("nvidia")
                .is_some_and(|rest| rest.parse::<u32>().is_ok())
        });
        match files.max(self.count("proc/driver/nvidia/gpus", |_| files == 0)) {
            0 => Err(GpuError::NoneFound),
            count => Ok(first(count)),
        }
    }

    fn count(&self, folder: &str, matches: impl Fn(&str) -> bool) -> u32 {
        let Ok(entries) = std::fs::read_dir(self.root.join(folder)) else {
            return 0;
        };
        let names = entries.flatten().map(|entry| entry.file_name());
        let count = names.filter(|name| name.to_str().is_some_and(&matches));
        u32::try_from(count.count()).unwrap_or(u32::MAX)
    }
}

fn first(count: u32) -> Vec<Gpu> {
    let gpu = |ordinal: u32| Gpu {
        id: GpuId(ordinal),
        visible_device: ordinal.to_string(),
    };
    (0..count).map(gpu).collect()
}

/// Numbers the GPUs: by their ordinals if all are ordinals, else by their index in the list.
fn numbered(devices: &[Device]) -> Vec<Gpu> {
    let ordinals = devices.iter().map(|device| match device {
        Device::Ordinal(ordinal) => Some(*ordinal),
        Device::Id(_) => None,
    });
    let ids = match ordinals.collect::<Option<Vec<u32>>>() {
        Some(ordinals) => ordinals,
        None => (0u32..).take(devices.len()).collect(),
    };
    let gpu = |(id, device): (u32, &Device)| Gpu {
        id: GpuId(id),
        visible_device: match device {
            Device::Ordinal(ordinal) => ordinal.to_string(),
            Device::Id(id) => id.clone(),
        },
    };
    ids.into_iter().zip(devices).map(gpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(gpus: &[Gpu]) -> String {
        let gpus: Vec<String> = gpus
            .iter()
            .map(|gpu| format!("{}={}", gpu.id, gpu.visible_device))
            .collect();
        gpus.join(" ")
    }

    fn machine(visible: Option<&str>) -> Machine {
        Machine {
            cuda_visible_devices: visible.map(str::to_owned),
            root: PathBuf::from("/nonexistent"),
        }
    }

    #[test]
    fn specifications_name_their_gpus() {
        let check = |spec: &str, expected: &str| {
            let spec: GpuSpec = spec.parse().unwrap();
            assert_eq!(show(&machine(None).gpus(&spec).unwrap()), expected);
        };
        check("1", "0=0");
        check("3", "0=0 1=1 2=2");
        check("2,", "2=2");
        check("0,2", "0=0 2=2");
        check(" 5, 1 ", "5=5 1=1");
        check("GPU-8a56a4bc,MIG-1/2/0", "0=GPU-8a56a4bc 1=MIG-1/2/0");
        check("GPU-8a56a4bc,3", "0=GPU-8a56a4bc 1=3");
    }

    #[test]
    fn bad_specifications_are_refused() {
        let check = |spec: &str, expected: GpuError| {
            assert_eq!(spec.parse::<GpuSpec>(), Err(expected), "{spec}");
        };
        check("0", GpuError::Count(0));
        check("129", GpuError::Count(129));
        check("", GpuError::Empty);
        check(",", GpuError::Empty);
        check("0,0", GpuError::Duplicate("0".to_owned()));
        check("GPU-aa,gpu-AA", GpuError::Duplicate("gpu-AA".to_owned()));
        check("-1", GpuError::NotADevice("-1".to_owned()));
        check("0,,1", GpuError::NotADevice(String::new()));
        check("0;1", GpuError::NotADevice("0;1".to_owned()));
        check("GPU-", GpuError::NotADevice("GPU-".to_owned()));
        check("cuda:0", GpuError::NotADevice("cuda:0".to_owned()));
    }

    #[test]
    fn visible_devices_bound_counts_and_all() {
        let check = |visible: &str, spec: GpuSpec, expected: Result<&str, GpuError>| {
            let gpus = machine(Some(visible)).gpus(&spec);
            assert_eq!(gpus.map(|gpus| show(&gpus)), expected.map(str::to_owned));
        };
        check("4,6", GpuSpec::All, Ok("4=4 6=6"));
        check("4,6,7", GpuSpec::Count(2), Ok("4=4 6=6"));
        check("MIG-a,MIG-b", GpuSpec::All, Ok("0=MIG-a 1=MIG-b"));
        check("4", GpuSpec::List(vec![Device::Ordinal(0)]), Ok("0=0"));
        for hidden in ["", "-1", "NoDevFiles"] {
            check(
                hidden,
                GpuSpec::All,
                Err(GpuError::Hidden(hidden.to_owned())),
            );
        }
        let too_few = GpuError::TooFew {
            wanted: 2,
            visible: "4".to_owned(),
            found: 1,
        };
        check("4", GpuSpec::Count(2), Err(too_few));
    }

    #[test]
    fn visible_devices_do_not_bound_places() {
        let places = machine(Some("4")).places(&GpuSpec::Count(2)).unwrap();
        assert_eq!(show(&places), "0=0 1=1");
    }

    #[test]
    fn all_counts_what_the_machine_shows() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine {
            cuda_visible_devices: None,
            root: root.path().to_owned(),
        };
        assert_eq!(machine.gpus(&GpuSpec::All), Err(GpuError::NoneFound));

        let listed = root.path().join("proc/driver/nvidia/gpus");
        for bus in ["0000:01:00.0", "0000:02:00.0"] {
            std::fs::create_dir_all(listed.join(bus)).unwrap();
        }
        assert_eq!(show(&machine.gpus(&GpuSpec::All).unwrap()), "0=0 1=1");

        let dev = root.path().join("dev");
        std::fs::create_dir(&dev).unwrap();
        for file in ["nvidia3", "nvidiactl", "nvidia-uvm", "null"] {
            std::fs::write(dev.join(file), "").unwrap();
        }
        assert_eq!(show(&machine.gpus(&GpuSpec::All).unwrap()), "0=0");
    }
}
