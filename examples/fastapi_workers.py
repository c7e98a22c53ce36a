"""The app of fastapi_sse.py under several worker processes that share one engine.

python examples/fastapi_workers.py MODEL [PORT] [WORKERS]
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import uvicorn


def main(model: str, port: int = 8000, workers: int = 2) -> None:
    # A private folder: whoever may open the socket may use the engine.
    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{folder}/engine.sock"
        engine = subprocess.Popen([sys.executable, "-m", "octavo_engine", "--model", model, "--bind", address])
        os.environ["ENGINE_ADDRESS"] = address
        try:
            # Each worker's lifespan joins the engine, and waits until the model is loaded.
            here = str(Path(__file__).parent)
            uvicorn.run("fastapi_sse:app", app_dir=here, port=port, workers=workers, log_level="warning")
        finally:
            engine.terminate()
            engine.wait()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
