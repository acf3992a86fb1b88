#!/usr/bin/env python3
from dr_keras.cli.main import run_script

if __name__ == "__main__":
    run_script("serve")
