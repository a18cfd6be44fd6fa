# The environments of both papers and of the smaller scales, in one place; sourced by common.sh, not to be run.
# Neither paper's list could be found in full: each list states its source and how certain it is.

# CR (arXiv 2507.14736), Fig. 1: "15 MetaWorld + 15 DMC" without names. These are the 15 + 15 of BRO (Nauman et al. 2024,
# naumix/BiggerRegularizedOptimistic, scripts/base/{dmc,mw}), which shares an author and has the Sweep task that CR names.
# Confidence 0.85. Meta-World's v2 tasks are gone from the releases that fit; these are the v3 tasks of the same names.
CR_DMC=(acrobot-swingup cheetah-run dog-run dog-stand dog-trot dog-walk finger-turn_hard fish-swim hopper-hop humanoid-run
  humanoid-stand humanoid-walk pendulum-swingup quadruped-run walker-run)
CR_DMC=("${CR_DMC[@]/%/-v0}") CR_DMC=("${CR_DMC[@]/#/dm_control/}")
CR_METAWORLD=(assembly basketball button-press coffee-pull coffee-push disassemble hammer hand-insert lever-pull
  pick-place-wall push push-back reach stick-pull sweep)
CR_METAWORLD=("${CR_METAWORLD[@]/%/-v3}") CR_METAWORLD=("${CR_METAWORLD[@]/#/metaworld/}")
CR_CONTROL=("${CR_DMC[@]}" "${CR_METAWORLD[@]}")

# CR's ablations: it names Sweep (overestimation) and no other task. Ours: two of each suite, one easier, one harder.
CR_ABLATIONS=(dm_control/cheetah-run-v0 dm_control/humanoid-run-v0 metaworld/sweep-v3 metaworld/stick-pull-v3)

# HR (arXiv 2406.09079), Figs. 1, 9, 19-25: "51 games, without hard-exploration environments". The 57 of
# data/atari_scores.csv less Gravitar, MontezumaRevenge, Pitfall, PrivateEye, Solaris and Venture, the usual six of that
# kind. The names are not in the paper; confidence 0.75.
HR_GAMES_51=(Alien Amidar Assault Asterix Asteroids Atlantis BankHeist BattleZone BeamRider Berzerk Bowling Boxing Breakout
  Centipede ChopperCommand CrazyClimber Defender DemonAttack DoubleDunk Enduro FishingDerby Freeway Frostbite Gopher Hero
  IceHockey Jamesbond Kangaroo Krull KungFuMaster MsPacman NameThisGame Phoenix Pong Qbert Riverraid RoadRunner Robotank
  Seaquest Skiing SpaceInvaders StarGunner Surround Tennis TimePilot Tutankham UpNDown VideoPinball WizardOfWor YarsRevenge
  Zaxxon)

# HR's 8 games for DQN and PPO: the text names the first four; the other four are a guess (common, no hard exploration;
# confidence in all eight below 0.2).
HR_GAMES_8=(Breakout Seaquest SpaceInvaders VideoPinball Asterix BeamRider NameThisGame Qbert)

# CR's "preliminary experiments" on Atari name no game: HR's eight, so that the runs are shared.
CR_ATARI=("${HR_GAMES_8[@]}")

# The smaller scales: cheap tasks of both suites; two games whose scores rise early, both among HR's.
LAPTOP_CONTROL=(dm_control/cartpole-swingup-v0 dm_control/cheetah-run-v0 metaworld/reach-v3)
LAPTOP_GAMES=(Breakout SpaceInvaders)
SMOKE_CONTROL=(dm_control/cartpole-swingup-v0 metaworld/reach-v3)
SMOKE_GAMES=(Breakout SpaceInvaders)
