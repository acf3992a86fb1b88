"""`python -m dr_keras.data.sources.download_child FOLDER URL SIZE SHA256`: the child process of `download.fetch`.

Prints the path of the file as JSON, or on standard error in one line why there is none.
"""

import json
import sys

import requests
import tensorflow_datasets as tfds

# These two classes have no public name.
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError


def main(folder: str, url: str, size: str, sha256: str) -> None:
    try:
        requests.head(url, timeout=20)  # TFDS would try an unreachable server again for minutes
    except requests.exceptions.RequestException:
        sys.exit(f"{url} cannot be reached")
    manager = tfds.download.DownloadManager(
        download_dir=folder,
        url_infos={url: UrlInfo(size=int(size), checksum=sha256, filename=None)},
        force_checksums_validation=True,
    )
    try:
        print(json.dumps(str(manager.download(url))))
    except tfds.download.DownloadError as error:  # names the HTTP code
        sys.exit(str(error))
    except NonMatchingChecksumError:
        sys.exit(f"{url} is not the expected file: its size or checksum differs")
    except requests.exceptions.RequestException:
        sys.exit(f"the connection to {url} broke off")
    except OSError as error:
        sys.exit(f"{url} cannot be kept: {error.strerror}")


if __name__ == "__main__":
    main(*sys.argv[1:])
